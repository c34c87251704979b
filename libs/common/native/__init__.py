"""For which platform a native file was built, told from its headers while its bytes stream by.

Formats: ELF (System V gABI, chapters 4 and 5, and the machines' supplements), Mach-O (Apple's `mach-o/loader.h` and
`fat.h`), PE (Microsoft, "PE Format"). Operating systems and architectures have the names that Node.js gives them.
"""

from libs.common.native.packages import NativeMember, by_package, can_load, package_of
from libs.common.native.platforms import Platform, host_platform
from libs.common.native.sniffer import NativeSniffer

__all__ = ["NativeMember", "NativeSniffer", "Platform", "by_package", "can_load", "host_platform", "package_of"]
