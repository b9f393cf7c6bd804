//! Writing the engine's XML, reading the client's.

use jiff::Timestamp;
use roxmltree::Node;
use uuid::Uuid;

/// Text with the five characters replaced.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A growing document.
#[derive(Debug, Default, Clone)]
pub struct X(pub String);

impl X {
    /// `<name>text</name>`.
    pub fn t(mut self, name: &str, text: impl ToString) -> Self {
        self.0.push_str(&format!("<{name}>{}</{name}>", escape(&text.to_string())));
        self
    }

    /// An element that is there when there is a value.
    pub fn o(self, name: &str, text: Option<impl ToString>) -> Self {
        match text {
            Some(text) => self.t(name, text),
            None => self,
        }
    }

    /// `<name href=… id=…/>`.
    pub fn r(mut self, name: &str, path: &str, id: Uuid) -> Self {
        self.0.push_str(&format!("<{name} href=\"/ovirt-engine/api/{path}/{id}\" id=\"{id}\"/>"));
        self
    }

    /// `<name id=…/>`.
    pub fn id(mut self, name: &str, id: impl ToString) -> Self {
        self.0.push_str(&format!("<{name} id=\"{}\"/>", id.to_string()));
        self
    }

    /// A nested element with attributes as text (` id="…"`).
    pub fn n(mut self, name: &str, attributes: &str, inner: X) -> Self {
        self.0.push_str(&format!("<{name}{attributes}>{}</{name}>", inner.0));
        self
    }

    /// Already XML.
    pub fn raw(mut self, xml: &str) -> Self {
        self.0.push_str(xml);
        self
    }

    pub fn list(name: &str, items: impl IntoIterator<Item = X>) -> X {
        let inner: String = items.into_iter().map(|x| x.0).collect();
        X(format!("<{name}>{inner}</{name}>"))
    }
}

/// ` href="/ovirt-engine/api/PATH/ID" id="ID"`.
pub fn at(path: &str, id: impl ToString) -> String {
    let id = id.to_string();
    format!(" href=\"/ovirt-engine/api/{path}/{id}\" id=\"{id}\"")
}

/// The engine's time: local with an offset; the lab lives in UTC+2.
pub fn time(at: Timestamp) -> String {
    let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(2));
    at.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
}

/// The child element of that name.
pub fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|c| c.is_element() && c.tag_name().name() == name)
}

/// Text at a path of child elements.
pub fn text(node: Node<'_, '_>, path: &str) -> Option<String> {
    let mut at = node;
    for part in path.split('/') {
        at = child(at, part)?;
    }
    Some(at.text().unwrap_or("").trim().to_owned())
}

/// A boolean at a path, as the engine reads it.
pub fn flag(node: Node<'_, '_>, path: &str) -> Option<bool> {
    Some(matches!(
        text(node, path)?.to_ascii_lowercase().as_str(),
        "true" | "t" | "yes" | "y" | "1"
    ))
}

/// `child@id`.
pub fn id_of(node: Node<'_, '_>, name: &str) -> Option<Uuid> {
    child(node, name)?.attribute("id")?.parse().ok()
}
