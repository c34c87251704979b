"""Jobs that reach for what is not theirs: the machine's files, the service's secrets, other runs, the network."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from libs.common.models import RunState
from tests.runner.hostile import Target

# What a job can read, whatever it tries: a program in each language that answers path → text or the name of an error.
_READERS = {
    "python": """
        import errno
        def handler(context):
            found = {}
            for path in context.parameters['paths']:
                try:
                    with open(path, 'rb') as file:
                        found[path] = file.read(20000).decode('utf-8', 'replace').replace('\\0', ' ')
                except OSError as error:
                    found[path] = errno.errorcode[error.errno]
            return found
    """,
    "node": """
        import fs from 'node:fs';
        export function handler({ parameters }) {
          const found = {};
          for (const path of parameters.paths) {
            try {
              found[path] = fs.readFileSync(path, 'utf8').slice(0, 20000).replaceAll('\\0', ' ');
            } catch (error) {
              found[path] = error.code;
            }
          }
          return found;
        }
    """,
}
_NOTHING = {"EACCES", "EPERM", "ENOENT"}
_PASSWD = "job:x:1000:1000:job:/job/home:/usr/sbin/nologin\n"


@pytest.mark.parametrize("code", _READERS.values(), ids=_READERS)
async def test_files_of_the_machine_and_of_the_service_can_not_be_read(victim: Target, code: str) -> None:
    pid = victim.pid
    private = [
        *("/etc/shadow", "/etc/hostname", "/etc/machine-id", "/etc/fstab", "/root/.bashrc", "/etc/ssl/private"),
        *("/var/run/secrets/kubernetes.io/serviceaccount/token", "/var/log/dpkg.log", "/proc/kcore", "/proc/kmsg"),
        *(f"/proc/{pid}/{name}" for name in ("environ", "maps", "mem", "cmdline", "fd/0", "fd/6", "root/etc/hostname")),
        *("/proc/1/environ", "/proc/1/root/etc/hostname", "/proc/self/root/etc/hostname"),
        *("/proc/self/cwd/../../../../../../etc/hostname", "/sys/kernel/notes", "/dev/mem", "/dev/kmsg"),
        *(str(Path(__file__)), str(victim.runner.scratch)),
    ]
    run = await victim.attack(code, {"paths": ["/etc/passwd", *private]})
    assert run.state is RunState.SUCCEEDED, run.error
    passwd = run.result.pop("/etc/passwd")
    assert passwd == {"bubblewrap": _PASSWD, "landlock": "EACCES"}[victim.level]
    if victim.level == "bubblewrap":
        assert "STOWAGE" not in run.result.pop("/proc/1/environ")  # that of the sandbox
    assert {path: text for path, text in run.result.items() if text not in _NOTHING} == {}


async def test_nothing_in_proc_tells_a_secret(victim: Target) -> None:
    """`attack` looks for the secrets in all that the job returns and logs."""
    run = await victim.attack(
        """
        import os
        def handler(context):
            seen = []
            for process in map(str, range(1, 32769)):
                for name in ('environ', 'cmdline', 'comm', 'status', 'stat', 'maps'):
                    try:
                        with open(f'/proc/{process}/{name}', 'rb') as file:
                            text = file.read()
                    except OSError:
                        continue
                    if name == 'environ':
                        print(text.decode('utf-8', 'replace'))
                    seen.append((int(process), name))
            return [sorted(map(int, os.listdir('/proc/self/task'))), sorted({process for process, _ in seen})]
        """
    )
    assert run.state is RunState.SUCCEEDED, run.error
    threads, seen = run.result
    assert set(seen) <= {1, *threads} if victim.level == "bubblewrap" else set(seen) <= {*threads}
    assert "STOWAGE_RUNNER_" not in await victim.runner.log(run.id)


async def test_other_runs_can_be_neither_read_nor_changed(victim: Target) -> None:
    other = await victim.start(
        """
        import time
        from pathlib import Path
        def handler(context):
            Path(context.output_dir, 'secret').write_text('of the other run')
            context.logger('written')
            while not Path(context.work_dir, 'stop').exists():
                time.sleep(0.02)
            return Path(context.output_dir, 'secret').read_text()
        """
    )
    await victim.runner.logged(other.id, "written")
    (secret,) = victim.runner.scratch.glob("runner-*/*/outputs/secret")
    before = [path.stat().st_mode for path in (secret, *list(secret.parents)[:4])]
    run = await victim.attack_beside(
        """
        import ctypes, os
        from pathlib import Path
        def handler(context):
            secret = Path(context.parameters['secret'])
            def attempt(action):
                try:
                    return repr(action())
                except OSError as error:
                    return type(error).__name__
            link = Path(context.output_dir, 'link')
            tried = {
                'read': lambda: secret.read_text(),
                'write': lambda: secret.write_text('mine'),
                'append': lambda: secret.open('a').close(),
                'truncate': lambda: os.truncate(secret, 0),
                'delete': lambda: secret.unlink(),
                'rename': lambda: secret.rename(link),
                'rename directory': lambda: secret.parent.rename(secret.parent.with_name('moved')),
                'hard link': lambda: link.hardlink_to(secret),
                'list': lambda: os.listdir(secret.parent),
                'list cell': lambda: os.listdir(secret.parents[1]),
                'list runner': lambda: os.listdir(secret.parents[2]),
                'create': lambda: (secret.parent / 'new').touch(),
                'stop': lambda: (secret.parents[1] / 'tmp' / 'stop').write_text(''),
                'socket': lambda: os.mknod(secret.parent / 'node'),
                'attribute': lambda: os.setxattr(secret, 'user.mine', b'1'),
                'watch': lambda: ctypes.CDLL(None, use_errno=True).inotify_add_watch(
                    ctypes.CDLL(None).inotify_init(), os.fsencode(secret.parent), 0x100) >= 0 or [][0],
            }
            found = {}
            for name, action in tried.items():
                try:
                    found[name] = attempt(action)
                except IndexError:
                    found[name] = 'PermissionError'
            for path in (secret, *list(secret.parents)[:4]):
                attempt(lambda: os.chmod(path, 0))
                attempt(lambda: os.chown(path, 12345, 12345))
            link.symlink_to(secret)
            found['through a link'] = attempt(lambda: link.read_text())
            return found
        """,
        {"secret": str(secret)},
    )
    assert {name: text for name, text in run.result.items() if not text.endswith("Error")} == {}
    assert [path.stat().st_mode for path in (secret, *list(secret.parents)[:4])] == before
    (secret.parents[1] / "tmp" / "stop").touch()
    ended = await victim.runner.finished(other.id)
    assert ended.result == "of the other run", ended.error
    victim.require_nothing_left(ended)
    assert [output.path for output in await victim.runner.client.outputs(run.id)] == []


@pytest.mark.parametrize("language", ["node", "python"])
async def test_bundle_inputs_and_harness_can_not_be_changed(victim: Target, language: str) -> None:
    code = {
        "node": """
            import fs from 'node:fs';
            import path from 'node:path';
            export function handler(context) {
              const bundle = process.cwd(), found = {};
              const inputs = path.join(path.dirname(context.outputDir), 'inputs');
              const tried = {
                change: () => fs.appendFileSync('main.mjs', 'x'),
                add: () => fs.writeFileSync('new.mjs', 'x'),
                remove: () => fs.unlinkSync('manifest.json'),
                inputs: () => fs.writeFileSync(path.join(inputs, 'new'), 'x'),
                program: () => fs.appendFileSync('/usr/bin/env', 'x'),
                system: () => fs.writeFileSync('/usr/lib/new', 'x'),
                etc: () => fs.writeFileSync('/etc/new', 'x'),
                root: () => fs.writeFileSync('/new', 'x'),
                above: () => fs.writeFileSync(path.join(path.dirname(context.outputDir), 'new'), 'x'),
                moved: () => fs.renameSync(context.outputDir, context.workDir + '/moved'),
              };
              for (const [name, action] of Object.entries(tried)) {
                try {
                  action();
                  found[name] = 'done';
                } catch (error) {
                  found[name] = error.code;
                }
              }
              return found;
            }
        """,
        "python": """
            import errno, os, sys
            from pathlib import Path
            def handler(context):
                above, found = Path(context.output_dir).parent, {}
                tried = {
                    'change': lambda: open('main.py', 'a').write('x'),
                    'mode': lambda: os.chmod('main.py', 0o777),
                    'truncate': lambda: os.truncate('main.py', 0),
                    'open to truncate': lambda: os.open('main.py', os.O_RDONLY | os.O_TRUNC),
                    'add': lambda: Path('new.py').touch(),
                    'remove': lambda: os.unlink('manifest.json'),
                    'inputs': lambda: (above / 'inputs' / 'new').touch(),
                    'library': lambda: open(os.__file__, 'a'),
                    'harness': lambda: open(sys.modules['__main__'].__file__, 'a'),
                    'system': lambda: Path('/usr/lib/new').touch(),
                    'above': lambda: (above / 'new').touch(),
                    'moved': lambda: os.rename(context.output_dir, context.work_dir + '/moved'),
                }
                mode = os.stat('main.py').st_mode
                for name, action in tried.items():
                    try:
                        action()
                        found[name] = 'done' if name != 'mode' or os.stat('main.py').st_mode != mode else 'kept'
                    except OSError as error:
                        found[name] = errno.errorcode[error.errno]
                return found
        """,
    }[language]
    run = await victim.attack(code)
    assert run.state is RunState.SUCCEEDED, run.error
    refused = {"EACCES", "EPERM", "EROFS", "EBUSY", "EXDEV", "ENOENT", "kept"}
    assert {name: text for name, text in run.result.items() if text not in refused} == {}


@contextlib.contextmanager
def _listening_sockets(directory: Path) -> Iterator[tuple[str, str]]:
    """A Unix socket with a path and an abstract one, and their names."""
    path, abstract = str(directory / "socket"), f"\0hostile-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for listening, name in ((one, path), (two, abstract)):
            listening.bind(name)
            listening.listen()
        yield path, abstract[1:]


async def test_no_service_and_no_socket_can_be_reached(victim: Target, tmp_path: Path) -> None:
    s3 = urlsplit(victim.runner.backend.s3_endpoint)
    own, registry = urlsplit(victim.runner.url), urlsplit(victim.registry.url)
    places = [[part.hostname, part.port] for part in (s3, own, registry)]
    places += [["169.254.169.254", 80], ["fd00:ec2::254", 80], ["8.8.8.8", 53], ["::1", own.port]]
    with _listening_sockets(tmp_path) as (path, abstract):
        run = await victim.attack(
            """
            import socket
            def handler(context):
                found = {}
                unix = [context.parameters['path'], '\\0' + context.parameters['abstract']]
                for place in [*map(tuple, context.parameters['places']), *unix]:
                    families = (socket.AF_UNIX,) if isinstance(place, str) else (socket.AF_INET, socket.AF_INET6)
                    for family in families:
                        mute = place[0] in ('127.0.0.1', '::1')  # nobody answers, and a datagram can't tell
                        for kind in (socket.SOCK_STREAM, *(() if mute else (socket.SOCK_DGRAM,))):
                            try:
                                with socket.socket(family, kind) as client:
                                    client.settimeout(0.3)
                                    client.connect(place)
                                    client.send(b'hello')
                                found[f'{place!r} {family} {kind}'] = 'reached'
                            except OSError as error:
                                found[f'{place!r} {family} {kind}'] = str(error)
                return found
            """,
            {"places": places, "path": path, "abstract": abstract},
        )
        assert [place for place, text in run.result.items() if text == "reached"] == []
        node = await victim.attack(
            """
            import net from 'node:net';
            const reach = (to) => new Promise((done) => {
              const client = net.connect(to, () => done('reached')).on('error', (error) => done(error.code));
              client.setTimeout(300, () => done('nothing'));
            });
            export async function handler({ parameters }) {
              const all = parameters.places.map(([host, port]) => ({ host, port }));
              all.push({ path: parameters.path }, { path: '\\0' + parameters.abstract });
              return Promise.all(all.map(reach));
            }
            """,
            {"places": places, "path": path, "abstract": abstract},
        )
    assert len(node.result) == len(places) + 2
    assert "reached" not in node.result


async def test_nobody_else_can_be_signalled_traced_or_limited(victim: Target) -> None:
    sleeper = await asyncio.create_subprocess_exec("/bin/sleep", "60")
    try:
        run = await victim.attack(
            """
            import ctypes, errno, os, resource, signal
            def handler(context):
                libc = ctypes.CDLL(None, use_errno=True)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                def attempt(action):
                    try:
                        return action() or 'done'
                    except (OSError, ValueError) as error:
                        return type(error).__name__
                def call(name, *arguments):
                    if getattr(libc, name)(*arguments) < 0:
                        raise OSError(ctypes.get_errno(), name)
                found = {}
                for pid in context.parameters['pids']:
                    for number in (0, signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
                        found[f'{number} to {pid}'] = attempt(lambda: os.kill(pid, number))
                        found[f'{number} to group {pid}'] = attempt(lambda: os.killpg(pid, number))
                    found[f'pidfd of {pid}'] = attempt(
                        lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL))
                    found[f'limits of {pid}'] = attempt(
                        lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3)) and None)
                    found[f'priority of {pid}'] = attempt(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
                    found[f'processors of {pid}'] = attempt(lambda: os.sched_setaffinity(pid, {0}))
                    found[f'scheduler of {pid}'] = attempt(
                        lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))
                    found[f'trace {pid}'] = attempt(lambda: call('ptrace', 16, pid, 0, 0))
                attempt(lambda: os.kill(os.getppid(), signal.SIGKILL))
                attempt(lambda: os.kill(-1, signal.SIGTERM))
                return found
            """,
            {"pids": [victim.pid, sleeper.pid, os.getpid()]},
            neighbour_seconds=0.6,
        )
        assert run.state is RunState.SUCCEEDED, run.error
        assert {name: text for name, text in run.result.items() if not text.endswith("Error")} == {}
        assert sleeper.returncode is None
    finally:
        sleeper.kill()
        await sleeper.wait()


async def test_limits_and_confinement_can_not_be_undone(victim: Target) -> None:
    run = await victim.attack("""
        import ctypes, errno, os, resource, socket
        from pathlib import Path
        def handler(context):
            libc = ctypes.CDLL(None, use_errno=True)
            def attempt(action):
                try:
                    action()
                    return 'done'
                except (OSError, ValueError) as error:
                    return type(error).__name__
            def call(name, *arguments):
                if getattr(libc, name)(*arguments) < 0:
                    raise OSError(ctypes.get_errno(), name)
            def raised(kind):
                resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            found = {f'limit {kind}': attempt(lambda: raised(kind)) for kind in (
                resource.RLIMIT_NPROC, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)}
            new_user, new_mount = 0x10000000, 0x20000
            os.mkdir(f'{context.work_dir}/d')
            tmp = os.fsencode(f'{context.work_dir}/d')
            found |= {
                'unshare': attempt(lambda: call('unshare', new_user | new_mount)),
                'setns': attempt(lambda: call('setns', os.open('/proc/self/stat', 0), 0)),
                'mount': attempt(lambda: call('mount', b'none', tmp, b'tmpfs', 0, None)),
                'bind mount': attempt(lambda: call('mount', b'/', tmp, None, 4096, None)),
                'umount': attempt(lambda: call('umount2', b'/proc', 2)),
                'chroot': attempt(lambda: os.chroot(tmp)),
                'device': attempt(lambda: os.mknod(f'{context.output_dir}/disk', 0o060666, os.makedev(254, 0))),
                'root': attempt(lambda: os.setresuid(1, 1, 1)),
                'packets': attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
                'netlink': attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
                'shared memory': attempt(lambda: call('shmget', 0, 4096, 0o1600)),
                'core pattern': attempt(lambda: open('/proc/sys/kernel/core_pattern', 'r+').close()),
                'sysrq': attempt(lambda: open('/proc/sysrq-trigger', 'w').close()),
                'host name': attempt(lambda: socket.sethostname('x')),
                'niceness': attempt(lambda: os.nice(-10)),
            }
            return found
    """)
    assert run.state is RunState.SUCCEEDED, run.error
    assert {name: text for name, text in run.result.items() if not text.endswith("Error")} == {}
