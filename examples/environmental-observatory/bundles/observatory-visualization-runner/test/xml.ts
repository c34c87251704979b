/** A strict reader for the subset of XML that the plots use: throws an Error at the first thing that is not well-formed. */
export interface XmlElement {
  readonly name: string;
  readonly attributes: Readonly<Record<string, string>>;
  readonly children: (XmlElement | string)[];
}

const TAG = /^<(\/?)([A-Za-z][\w-]*)((?:\s+[A-Za-z][\w:-]*="[^"<]*")*)\s*(\/?)>/;
const ENTITY = /&(?:amp|lt|gt|quot);/g;

export function parseXml(document: string): XmlElement {
  const root: XmlElement = { name: "", attributes: {}, children: [] };
  const open: XmlElement[] = [root];
  let rest = document.trim();
  while (rest !== "") {
    const top = open.at(-1)!;
    if (!rest.startsWith("<")) {
      const text = rest.slice(0, rest.indexOf("<") < 0 ? rest.length : rest.indexOf("<"));
      top.children.push(unescape(text));
      rest = rest.slice(text.length);
      continue;
    }
    const match = TAG.exec(rest);
    if (!match) throw new Error(`not a tag: ${rest.slice(0, 60)}`);
    const [tag, closing, name = "", written = "", empty] = match;
    if (closing) {
      if (top.name !== name) throw new Error(`</${name}> closes <${top.name}>`);
      open.pop();
    } else {
      const node: XmlElement = { name, attributes: parseAttributes(written, name), children: [] };
      top.children.push(node);
      if (!empty) open.push(node);
    }
    rest = rest.slice(tag.length);
  }
  if (open.length !== 1) throw new Error(`<${open.at(-1)!.name}> is not closed`);
  const [only, ...more] = root.children;
  if (more.length > 0 || only === undefined || typeof only === "string")
    throw new Error("expected one root element");
  return only;
}

/** The element and all below it, in the order of the document. */
export function* walk(node: XmlElement): Generator<XmlElement> {
  yield node;
  for (const child of node.children) if (typeof child !== "string") yield* walk(child);
}

export function textOf(node: XmlElement): string {
  return node.children.map((child) => (typeof child === "string" ? child : textOf(child))).join("");
}

function parseAttributes(written: string, name: string): Record<string, string> {
  const attributes: Record<string, string> = {};
  for (const [, key = "", value = ""] of written.matchAll(/([A-Za-z][\w:-]*)="([^"]*)"/g)) {
    if (key in attributes) throw new Error(`<${name}> has ${key} twice`);
    attributes[key] = unescape(value);
  }
  return attributes;
}

function unescape(text: string): string {
  if (text.replaceAll(ENTITY, "").includes("&")) throw new Error(`a bare ampersand: ${text}`);
  return text
    .replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">")
    .replaceAll("&quot;", '"')
    .replaceAll("&amp;", "&");
}
