//! `search=`, `max=` and pages, as far as the engine's query language is used by clients:
//! `field=value` and `field!=value` joined by `and`/`or`, wildcards, quotes, `sortby`,
//! `page`. A field that the collection does not have is a 400, as in the engine.

use crate::{api::Request, fault::Refusal};

/// What an item has in a field; several values count as any of them.
pub type Values = Vec<String>;

struct Term {
    field: String,
    equal: bool,
    value: String,
}

#[derive(Default)]
struct Query {
    /// Any of these, each of which is all of its terms.
    any: Vec<Vec<Term>>,
    sort: Option<(String, bool)>,
    page: usize,
}

/// The items that a request asks for. `fields` are the searchable ones, the first of them
/// is what a bare word is looked for in; `value` gives an item's values of one.
///
/// # Errors
/// 400 for a search that cannot be read.
pub fn select<T>(
    request: &Request,
    items: Vec<T>,
    fields: &[&str],
    value: impl Fn(&T, &str) -> Values,
) -> Result<Vec<T>, Refusal> {
    let text = request.query.get("search").map_or("", String::as_str);
    let query = parse(text, fields)?;
    let exact = request.query.get("case_sensitive").is_some_and(|v| v == "true");
    let fits = |item: &T, term: &Term| {
        let found = value(item, &term.field).iter().any(|v| like(v, &term.value, exact));
        found == term.equal
    };
    let mut items: Vec<T> = items
        .into_iter()
        .filter(|i| {
            query.any.is_empty() || query.any.iter().any(|all| all.iter().all(|t| fits(i, t)))
        })
        .collect();
    if let Some((field, descending)) = &query.sort {
        items.sort_by_key(|item| value(item, field));
        if *descending {
            items.reverse();
        }
    }
    Ok(match number(request, "max") {
        Some(max) if max > 0 => items.into_iter().skip((query.page - 1) * max).take(max).collect(),
        _ => items,
    })
}

/// A number among the query parameters.
pub fn number(request: &Request, name: &str) -> Option<usize> {
    request.query.get(name)?.parse().ok()
}

/// The page a search asks for, from 1.
pub fn page(request: &Request) -> usize {
    let words = tokens(request.query.get("search").map_or("", String::as_str));
    let at = words.iter().position(|w| w == "page");
    at.and_then(|i| words.get(i + 1)?.parse().ok()).unwrap_or(1).max(1)
}

fn parse(text: &str, fields: &[&str]) -> Result<Query, Refusal> {
    let bad =
        || Refusal::bad("Operation Failed", format!("Search expression is not valid: {text}"));
    let known = |word: &str| {
        let word = word.to_lowercase();
        fields.contains(&word.as_str()).then_some(word).ok_or_else(bad)
    };
    let mut query = Query { page: 1, ..Query::default() };
    let words = tokens(text);
    let mut at = words.iter().peekable();
    while let Some(word) = at.next() {
        match word.as_str() {
            "and" => {}
            "or" if query.any.last().is_none_or(Vec::is_empty) => return Err(bad()),
            "or" => query.any.push(Vec::new()),
            "sortby" => {
                let field = known(at.next().ok_or_else(bad)?)?;
                let order = at.next_if(|w| ["asc", "desc"].contains(&w.as_str()));
                query.sort = Some((field, order.is_some_and(|w| w == "desc")));
            }
            "page" => {
                let page = at.next().and_then(|w| w.parse().ok());
                query.page = page.filter(|p| *p > 0).ok_or_else(bad)?;
            }
            "=" | "!=" => return Err(bad()),
            word => {
                let term = match at.next_if(|w| ["=", "!="].contains(&w.as_str())) {
                    Some(operator) => Term {
                        field: known(word)?,
                        equal: operator == "=",
                        value: at.next().ok_or_else(bad)?.clone(),
                    },
                    None => Term {
                        field: fields.first().ok_or_else(bad)?.to_string(),
                        equal: true,
                        value: format!("*{word}*"),
                    },
                };
                if query.any.is_empty() {
                    query.any.push(Vec::new());
                }
                if let Some(all) = query.any.last_mut() {
                    all.push(term);
                }
            }
        }
    }
    if query.any.last().is_some_and(Vec::is_empty) {
        return Err(bad());
    }
    Ok(query)
}

/// Words, operators and quoted values without their quotes.
fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let operator = match c {
            '=' => "=",
            '!' if chars.peek() == Some(&'=') => {
                chars.next();
                "!="
            }
            '"' => {
                out.push(chars.by_ref().take_while(|c| *c != '"').collect());
                continue;
            }
            c if c.is_whitespace() => "",
            c => {
                word.push(c);
                continue;
            }
        };
        if !word.is_empty() {
            out.push(std::mem::take(&mut word));
        }
        if !operator.is_empty() {
            out.push(operator.to_owned());
        }
    }
    if !word.is_empty() {
        out.push(word);
    }
    out
}

/// Whether a value fits a pattern with `*`.
fn like(value: &str, pattern: &str, exact: bool) -> bool {
    let fold = |t: &str| if exact { t.to_owned() } else { t.to_lowercase() };
    let (value, pattern) = (fold(value), fold(pattern));
    let parts: Vec<&str> = pattern.split('*').collect();
    let [first, middle @ .., last] = parts.as_slice() else { return value == pattern };
    let Some(mut rest) = value.strip_prefix(first) else { return false };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(search: &str, max: Option<&str>) -> Result<Vec<&'static str>, Refusal> {
        let mut query = std::collections::HashMap::from([("search".into(), search.into())]);
        query.extend(max.map(|m| ("max".to_owned(), m.to_owned())));
        let request = Request {
            method: "GET".into(),
            path: String::new(),
            query,
            headers: Default::default(),
            body: Vec::new(),
        };
        let items = vec![("web2", "up"), ("Web1", "down"), ("my db", "down")];
        let found = select(&request, items, &["name", "status"], |i, field| {
            vec![if field == "name" { i.0.to_owned() } else { i.1.to_owned() }]
        })?;
        Ok(found.into_iter().map(|i| i.0).collect())
    }

    #[test]
    fn terms_wildcards_and_pages() {
        assert_eq!(names("", None).unwrap().len(), 3);
        assert_eq!(names("name=web1", None).unwrap(), ["Web1"]);
        assert_eq!(names("name = web* and status!=up", None).unwrap(), ["Web1"]);
        assert_eq!(names("name=\"my db\" or status=up", None).unwrap(), ["web2", "my db"]);
        assert_eq!(names("web", None).unwrap(), ["web2", "Web1"]);
        assert_eq!(names("sortby name desc page 2", Some("2")).unwrap(), ["Web1"]);
        assert_eq!(names("page 2", None).unwrap().len(), 3);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for bad in ["colour=blue", "name=", "= web1", "sortby", "page x", "or name=a"] {
            assert!(matches!(names(bad, None), Err(Refusal::Fault(400, ..))), "{bad}");
        }
    }
}
