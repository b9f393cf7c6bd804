//! The engine's XML as a small tree, and the writer of request bodies.
//!
//! A tree instead of serde: the engine leaves elements out, sends them empty, interleaves
//! repeated ones and adds new ones with every version, and a reader that stops at any of
//! that loses a whole inventory. Invariant: reading never guesses — an element that is
//! absent, empty or not of the asked kind is `None`.

use std::{fmt::Write as _, str::FromStr};

use quick_xml::{Reader, events::Event};

/// Deepest nesting accepted; recorded answers reach 9.
const MAX_DEPTH: usize = 64;
/// Most elements accepted in one document; 4,000 VMs with attachments are about 1.2 million.
const MAX_ELEMENTS: usize = 8_000_000;

/// A document that is not well-formed XML, or is beyond the limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not readable as XML at byte {at}: {reason}")]
pub struct XmlError {
    /// Where, in bytes.
    pub at: u64,
    /// Why.
    pub reason: String,
}

/// One element: local name, attributes, children, own text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    /// Name without a namespace prefix.
    pub name: String,
    /// Attributes by local name, unescaped.
    pub attrs: Vec<(String, String)>,
    /// Child elements in order.
    pub children: Vec<Element>,
    /// All text directly inside, unescaped, blanks kept.
    pub text: String,
}

impl Element {
    /// Parses a whole document and returns its root.
    ///
    /// # Errors
    /// Anything not well-formed, an undeclared entity, or a document beyond the limits.
    pub fn parse(bytes: &[u8]) -> Result<Self, XmlError> {
        Self::read(bytes, |root, child| root.children.push(child))
    }

    /// Parses a document and hands each child of the root to `each` as it ends, with the
    /// root as far as it is read (name and attributes). Returns the root without children.
    ///
    /// A list of thousands of VMs is tens of megabytes of XML; as a tree it would be five
    /// times that, one record at a time it is nothing.
    ///
    /// # Errors
    /// As `parse`; children handed out before the error stay handed out.
    pub fn parse_each(
        bytes: &[u8],
        mut each: impl FnMut(&Element, Element),
    ) -> Result<Self, XmlError> {
        Self::read(bytes, |root, child| each(root, child))
    }

    fn read(
        bytes: &[u8],
        mut of_root: impl FnMut(&mut Element, Element),
    ) -> Result<Self, XmlError> {
        let text = std::str::from_utf8(bytes)
            .map_err(|e| XmlError { at: e.valid_up_to() as u64, reason: "not UTF-8".into() })?;
        let mut reader = Reader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
        let mut open: Vec<Element> = Vec::new();
        let mut root = None;
        let mut count = 0usize;
        loop {
            let event = reader.read_event();
            let at = reader.buffer_position();
            let fail = |reason: String| XmlError { at, reason };
            match event.map_err(|e| fail(e.to_string()))? {
                Event::Start(start) => {
                    count += 1;
                    if open.len() >= MAX_DEPTH || count > MAX_ELEMENTS {
                        return Err(fail("nested too deeply or too long".into()));
                    }
                    if root.is_some() {
                        return Err(fail("more than one root element".into()));
                    }
                    open.push(Element::begin(&start).map_err(fail)?);
                }
                Event::Empty(start) => {
                    count += 1;
                    if count > MAX_ELEMENTS || root.is_some() {
                        return Err(fail("too long or more than one root element".into()));
                    }
                    let element = Element::begin(&start).map_err(fail)?;
                    match open.as_mut_slice() {
                        [] => root = Some(element),
                        [only] => of_root(only, element),
                        [.., parent] => parent.children.push(element),
                    }
                }
                Event::End(_) => {
                    let Some(element) = open.pop() else {
                        return Err(fail("end tag without a start".into()));
                    };
                    match open.as_mut_slice() {
                        [] => root = Some(element),
                        [only] => of_root(only, element),
                        [.., parent] => parent.children.push(element),
                    }
                }
                Event::Text(text) => {
                    let text = text.xml10_content();
                    match open.last_mut() {
                        Some(element) => element.text.push_str(&text),
                        None if text.trim().is_empty() => {}
                        None => return Err(fail("text outside of the root element".into())),
                    }
                }
                Event::CData(data) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&data.into_inner());
                    }
                }
                Event::GeneralRef(reference) => {
                    let resolved = match reference.resolve_char_ref() {
                        Ok(Some(c)) => c.to_string(),
                        _ => quick_xml::escape::resolve_predefined_entity(&reference)
                            .ok_or_else(|| fail("unknown entity".into()))?
                            .to_owned(),
                    };
                    match open.last_mut() {
                        Some(element) => element.text.push_str(&resolved),
                        None => return Err(fail("entity outside of the root element".into())),
                    }
                }
                // A document type could define entities; the engine sends none.
                Event::DocType(_) => return Err(fail("a document type is not accepted".into())),
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
                Event::Eof => break,
            }
        }
        let at = reader.buffer_position();
        if !open.is_empty() {
            return Err(XmlError { at, reason: "the document ends inside an element".into() });
        }
        root.ok_or(XmlError { at, reason: "no element".into() })
    }

    fn begin(start: &quick_xml::events::BytesStart<'_>) -> Result<Self, String> {
        let mut element =
            Element { name: start.local_name().as_ref().to_owned(), ..Self::default() };
        for attr in start.attributes() {
            let attr = attr.map_err(|e| e.to_string())?;
            let value = quick_xml::escape::unescape(&attr.value).map_err(|e| e.to_string())?;
            element.attrs.push((attr.key.local_name().as_ref().to_owned(), value.into_owned()));
        }
        Ok(element)
    }

    /// An attribute that is present and not blank.
    pub fn attr(&self, name: &str) -> Option<&str> {
        let (_, value) = self.attrs.iter().find(|(key, _)| key == name)?;
        Some(value.trim()).filter(|v| !v.is_empty())
    }

    /// The first child of that name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.name == name)
    }

    /// All children of that name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |c| c.name == name)
    }

    /// The element at a path of child names, `storage/type`.
    pub fn at(&self, path: &str) -> Option<&Element> {
        path.split('/').try_fold(self, |element, name| element.child(name))
    }

    /// All elements at a path, branching wherever a name repeats.
    pub fn every(&self, path: &str) -> Vec<&Element> {
        path.split('/').fold(vec![self], |found, name| {
            found
                .into_iter()
                .flat_map(|e| e.children.iter().filter(move |c| c.name == name))
                .collect()
        })
    }

    /// The text at a path, as sent; `None` when absent or blank.
    pub fn string(&self, path: &str) -> Option<String> {
        let text = &self.at(path)?.text;
        (!text.trim().is_empty()).then(|| text.clone())
    }

    /// A word or number at a path, trimmed.
    pub fn word(&self, path: &str) -> Option<&str> {
        Some(self.at(path)?.text.trim()).filter(|t| !t.is_empty())
    }

    /// A value parsed from the trimmed text at a path; `None` when it is not one.
    pub fn value<T: FromStr>(&self, path: &str) -> Option<T> {
        self.word(path)?.parse().ok()
    }

    /// A boolean in any spelling the engine or other writers use.
    pub fn flag(&self, path: &str) -> Option<bool> {
        parse_bool(self.word(path)?)
    }

    /// The `id` attribute of the element at a path.
    pub fn id<T: FromStr>(&self, path: &str) -> Option<T> {
        self.at(path)?.attr("id")?.parse().ok()
    }

    /// An RFC 3339 time with offset, converted to UTC.
    pub fn time(&self, path: &str) -> Option<jiff::Timestamp> {
        self.value(path)
    }
}

/// `true`, `True`, `t`, `yes`, `y`, `1` and their opposites.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "0" => Some(false),
        _ => None,
    }
}

/// Escapes text for element content and attribute values.
///
/// Characters that XML 1.0 cannot hold at all are dropped: the engine would refuse the
/// whole request because of one control character in a description.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

/// Builds a request body. Optional values that are `None` are left out: the engine reads
/// an empty element as a value.
#[derive(Debug, Default)]
pub struct Body(String);

impl Body {
    /// An element with attributes and whatever `inside` writes.
    pub fn nest(
        mut self,
        name: &str,
        attrs: &[(&str, &str)],
        inside: impl FnOnce(Self) -> Self,
    ) -> Self {
        self.0.push('<');
        self.0.push_str(name);
        for (key, value) in attrs {
            let _ = write!(self.0, " {key}=\"{}\"", escape(value));
        }
        self.0.push('>');
        let mut body = inside(self);
        let _ = write!(body.0, "</{name}>");
        body
    }

    /// `<name>text</name>`.
    pub fn text(self, name: &str, text: &str) -> Self {
        self.nest(name, &[], |mut b| {
            b.0.push_str(&escape(text));
            b
        })
    }

    /// `<name>value</name>`, or nothing.
    pub fn maybe<T: ToString>(self, name: &str, value: Option<T>) -> Self {
        match value {
            Some(value) => self.text(name, &value.to_string()),
            None => self,
        }
    }

    /// `<name id="…"/>`, or nothing.
    pub fn reference<T: ToString>(self, name: &str, id: Option<T>) -> Self {
        match id {
            Some(id) => self.nest(name, &[("id", &id.to_string())], |b| b),
            None => self,
        }
    }

    /// The finished document.
    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_text_entities_cdata_and_interleaved_lists() {
        let root = Element::parse(
            b"<?xml version=\"1.0\"?>\n<a x='1 &amp; 2'><b>p &lt;q&gt; &#65;&#x42;</b><c/><b><![CDATA[<&]]></b><n> 7 </n></a>\n",
        )
        .unwrap();
        assert_eq!(root.attr("x"), Some("1 & 2"));
        assert_eq!(root.string("b").unwrap(), "p <q> AB");
        assert_eq!(root.all("b").count(), 2);
        assert_eq!(root.every("b")[1].text, "<&");
        assert_eq!(root.value::<u64>("n"), Some(7));
        assert_eq!((root.string("c"), root.value::<u64>("c"), root.flag("c")), (None, None, None));
    }

    #[test]
    fn children_of_the_root_come_one_by_one() {
        let mut seen = Vec::new();
        let root = Element::parse_each(b"<vms a='1'><vm><x/></vm><link/></vms>", |root, child| {
            seen.push((root.name.clone(), child.name.clone(), child.children.len()));
        })
        .unwrap();
        assert_eq!(seen, [("vms".into(), "vm".into(), 1), ("vms".into(), "link".into(), 0)]);
        assert!(root.children.is_empty() && root.attr("a") == Some("1"));
    }

    #[test]
    fn refuses_what_is_no_document() {
        for bad in [
            &b""[..],
            b"   ",
            b"Unauthorized",
            b"<a>",
            b"<a></b>",
            b"<a/><b/>",
            b"<a>&unknown;</a>",
            b"<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>",
            b"<a>\xff</a>",
            b"</a>",
        ] {
            assert!(Element::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(Element::parse("<a>".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn booleans_of_other_writers_are_read() {
        for (text, expected) in [
            ("True", Some(true)),
            ("false", Some(false)),
            (" yes ", Some(true)),
            ("0", Some(false)),
            ("maybe", None),
        ] {
            assert_eq!(parse_bool(text), expected, "{text}");
        }
    }

    #[test]
    fn bodies_escape_and_leave_out() {
        let body = Body::default()
            .nest("vm", &[("id", "a\"b")], |b| {
                b.text("name", "x<&>\u{1}y").maybe("memory", Some(5)).maybe::<u64>("none", None)
            })
            .finish();
        assert_eq!(body, "<vm id=\"a&quot;b\"><name>x&lt;&amp;&gt;y</name><memory>5</memory></vm>");
        assert_eq!(Element::parse(body.as_bytes()).unwrap().string("name").unwrap(), "x<&>y");
    }
}
