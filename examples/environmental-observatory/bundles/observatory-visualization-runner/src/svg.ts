/** Building SVG as text: every attribute and every piece of text goes through {@link escapeXml}. */

type Attributes = Readonly<Record<string, string | number | undefined>>;

/** Escapes for text and for attributes in double quotes, and drops characters that XML 1.0 can't hold. */
export function escapeXml(text: string): string {
  return text
    .replace(/[^\t\n\r\u{20}-\u{D7FF}\u{E000}-\u{FFFD}\u{10000}-\u{10FFFF}]/gu, "")
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}

/** An element with markup as its children; attributes that are undefined are left out, numbers rounded to 1/100. */
export function element(name: string, attributes: Attributes, ...children: readonly string[]): string {
  const written = Object.entries(attributes)
    .filter(([, value]) => value !== undefined)
    .map(
      ([key, value]) =>
        ` ${key}="${typeof value === "number" ? coordinate(value) : escapeXml(String(value))}"`,
    )
    .join("");
  return children.length === 0 ? `<${name}${written}/>` : `<${name}${written}>${children.join("")}</${name}>`;
}

export function textElement(attributes: Attributes, text: string): string {
  return element("text", attributes, escapeXml(text));
}

function coordinate(value: number): string {
  return String(Math.round(value * 100) / 100);
}
