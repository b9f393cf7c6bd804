//! From the engine's XML to the values of `hvbak_types`.
//!
//! One rule everywhere: read by presence, never by version; what is not there is `None`.
//! A record of a list without a usable id is left out and counted, because one odd record
//! must not hide all the others.

mod disk;
mod event;
pub(crate) mod place;
mod vm;

pub use event::{Event, Job, StorageConnection};
pub use place::version;

use crate::xml::{Element, XmlError};

/// Why a document does not hold what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not XML.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// XML of something else: a fault, an HTML page, another entity.
    #[error("expected <{expected}>, found <{found}>")]
    Root {
        /// The element that was asked for.
        expected: &'static str,
        /// The element that came, cut.
        found: String,
    },
    /// An entity without the one thing it must have.
    #[error("<{element}> without a usable {field}")]
    Field {
        /// The entity's element.
        element: &'static str,
        /// What is missing.
        field: &'static str,
    },
}

/// An entity of the API.
pub trait Entity: Sized {
    /// Name of its element.
    const ITEM: &'static str;
    /// Name of the list's element.
    const LIST: &'static str;
    /// Reads the element.
    ///
    /// # Errors
    /// Only when the entity's own identity is missing.
    fn read(element: &Element) -> Result<Self, ParseError>;
}

/// A list and how many of its records could not be used.
#[derive(Debug, Clone, PartialEq)]
pub struct List<T> {
    /// The usable records, in the order sent.
    pub items: Vec<T>,
    /// Records left out, each with the reason.
    pub skipped: Vec<ParseError>,
}

impl<T: Entity> List<T> {
    fn new() -> Self {
        Self { items: Vec::new(), skipped: Vec::new() }
    }

    /// Takes a child of the list's element; others than records are passed over.
    fn take(&mut self, element: &Element) {
        if element.name != T::ITEM {
            return;
        }
        match T::read(element) {
            Ok(item) => self.items.push(item),
            Err(error) => {
                tracing::warn!(list = T::LIST, %error, "a record of the engine is left out");
                self.skipped.push(error);
            }
        }
    }
}

/// Reads a list document, holding one record at a time.
///
/// # Errors
/// Not XML, or another root element.
pub fn list<T: Entity>(document: &[u8]) -> Result<List<T>, ParseError> {
    let mut list = List::new();
    let root = Element::parse_each(document, |root, child| {
        if root.name == T::LIST {
            list.take(&child);
        }
    })?;
    expect_root(&root, T::LIST)?;
    Ok(list)
}

/// Reads a document of one entity.
///
/// # Errors
/// Not XML, another root element, or no id.
pub fn one<T: Entity>(document: &[u8]) -> Result<T, ParseError> {
    one_in(&Element::parse(document)?)
}

/// Reads a list element.
///
/// # Errors
/// Another element name.
pub fn list_in<T: Entity>(root: &Element) -> Result<List<T>, ParseError> {
    expect_root(root, T::LIST)?;
    let mut list = List::new();
    root.children.iter().for_each(|child| list.take(child));
    Ok(list)
}

/// Reads an entity's element.
///
/// # Errors
/// Another element name, or no id.
pub fn one_in<T: Entity>(root: &Element) -> Result<T, ParseError> {
    expect_root(root, T::ITEM)?;
    T::read(root)
}

fn expect_root(root: &Element, expected: &'static str) -> Result<(), ParseError> {
    if root.name == expected {
        return Ok(());
    }
    Err(ParseError::Root { expected, found: root.name.chars().take(40).collect() })
}

/// The entity's own id.
fn own_id<T: std::str::FromStr>(e: &Element, element: &'static str) -> Result<T, ParseError> {
    e.attr("id").and_then(|id| id.parse().ok()).ok_or(ParseError::Field { element, field: "id" })
}

/// `version/{major,minor}`.
fn level(e: &Element) -> Option<(u32, u32)> {
    Some((e.value("version/major")?, e.value("version/minor")?))
}

/// Text that is shown but never required.
fn name(e: &Element) -> String {
    e.string("name").unwrap_or_default()
}
