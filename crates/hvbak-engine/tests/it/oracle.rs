//! A second reading of the same documents, by roxmltree and nothing of the crate.

use roxmltree::Node;

/// The first element at a path.
pub fn at<'a, 'i>(node: Node<'a, 'i>, path: &str) -> Option<Node<'a, 'i>> {
    path.split('/').try_fold(node, |n, name| n.children().find(|c| c.has_tag_name(name)))
}

/// Text at a path, `None` when absent or blank.
pub fn text(node: Node<'_, '_>, path: &str) -> Option<String> {
    at(node, path)?.text().filter(|t| !t.trim().is_empty()).map(str::to_owned)
}

pub fn num(node: Node<'_, '_>, path: &str) -> Option<u64> {
    text(node, path).map(|t| t.trim().parse().unwrap_or_else(|_| panic!("{path}: {t}")))
}

pub fn flag(node: Node<'_, '_>, path: &str) -> Option<bool> {
    text(node, path).map(|t| match t.as_str() {
        "true" => true,
        "false" => false,
        other => panic!("{path}: {other}"),
    })
}

/// The `id` attribute at a path (empty path: the node itself).
pub fn id(node: Node<'_, '_>, path: &str) -> Option<String> {
    let node = if path.is_empty() { node } else { at(node, path)? };
    node.attribute("id").map(str::to_owned)
}

/// Milliseconds since the epoch of an RFC 3339 time, computed by hand.
pub fn millis(node: Node<'_, '_>, path: &str) -> Option<i64> {
    let t = text(node, path)?;
    let n = |r: std::ops::Range<usize>| t[r].parse::<i64>().unwrap();
    let (y, m, d) = (n(0..4), n(5..7), n(8..10));
    // Days from the civil calendar (Howard Hinnant's algorithm).
    let y2 = if m <= 2 { y - 1 } else { y };
    let era = y2.div_euclid(400);
    let yoe = y2 - era * 400;
    let doy = (153 * (m + if m > 2 { -3 } else { 9 }) + 2) / 5 + d - 1;
    let days = era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468;
    let secs = days * 86_400 + n(11..13) * 3600 + n(14..16) * 60 + n(17..19);
    let rest = &t[19..];
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(f) => {
            let end = f.find(|c: char| !c.is_ascii_digit()).unwrap();
            (format!("{:0<3}", &f[..end])[..3].parse::<i64>().unwrap(), &f[end..])
        }
        None => (0, rest),
    };
    let offset = match zone {
        "Z" => 0,
        z => {
            let minutes = z[1..3].parse::<i64>().unwrap() * 60 + z[4..6].parse::<i64>().unwrap();
            if z.starts_with('-') { -minutes } else { minutes }
        }
    };
    Some((secs - offset * 60) * 1000 + fraction)
}
