//! The bill of materials (CycloneDX 1.5) and the licence texts of all crates that are linked
//! into the two shipped programs, from cargo's metadata.
//!
//! Invariant: no crate without a licence, and none under one that `deny.toml` does not allow;
//! the spec's `License:` names exactly what is in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::build::{WORKER_TARGET, cargo};

/// Programs that are shipped.
const SHIPPED: &[&str] = &["hvbak", "hvbak-worker"];

/// Which of several offered licences is taken: the first of these that is offered.
const PREFERRED: &[&str] = &["Apache-2.0", "MIT"];

/// A crate that is linked in.
struct Part {
    id: String,
    name: String,
    version: String,
    licence: String,
    checksum: Option<String>,
    folder: std::path::PathBuf,
    needs: Vec<String>,
}

/// All of them.
pub struct Bill(Vec<Part>);

/// Writes `sbom.cdx.json` and `THIRD-PARTY-LICENSES.txt` into a folder.
pub fn write(folder: &Path) -> Result<Bill> {
    let said = cargo()
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", WORKER_TARGET])
        .output()
        .context("start cargo metadata")?;
    ensure!(said.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&said.stderr));
    let lock: toml::Value = toml::from_str(&fs::read_to_string("Cargo.lock")?)?;
    let bill = Bill(parts(&serde_json::from_slice(&said.stdout)?, &lock)?);
    fs::create_dir_all(folder)?;
    fs::write(
        folder.join("sbom.cdx.json"),
        serde_json::to_string_pretty(&bill.cyclonedx())? + "\n",
    )?;
    fs::write(folder.join("THIRD-PARTY-LICENSES.txt"), bill.texts()?)?;
    Ok(bill)
}

/// What the shipped programs are linked from; dev and build dependencies are not.
fn parts(metadata: &Value, lock: &toml::Value) -> Result<Vec<Part>> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|p| (text(&p["id"]), p)).collect();
    let mut edges: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let linked = list(&node["deps"])
            .into_iter()
            .filter(|dep| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()));
        edges.insert(text(&node["id"]), linked.map(|dep| text(&dep["pkg"])).collect());
    }
    let mut open: Vec<String> = packages
        .iter()
        .filter(|(_, p)| SHIPPED.iter().any(|name| p["name"] == *name))
        .map(|(id, _)| id.clone())
        .collect();
    ensure!(open.len() == SHIPPED.len(), "{SHIPPED:?} are not all in the workspace");
    let mut seen = BTreeSet::new();
    let mut parts = Vec::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let package = packages.get(&id).with_context(|| format!("{id} is unknown"))?;
        let needs = edges.get(&id).cloned().unwrap_or_default();
        open.extend(needs.iter().cloned());
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let licence = text(&package["license"]).replace(" / ", "/").replace('/', " OR ");
        ensure!(!licence.is_empty(), "{name} {version} names no licence");
        let checksum =
            lock["package"].as_array().into_iter().flatten().find(|p| {
                p["name"].as_str() == Some(&name) && p["version"].as_str() == Some(&version)
            });
        let checksum = checksum.and_then(|p| p.get("checksum")?.as_str()).map(str::to_owned);
        let manifest = text(&package["manifest_path"]);
        let folder = Path::new(&manifest).parent().unwrap_or(Path::new("")).to_owned();
        parts.push(Part { id, name, version, licence, checksum, folder, needs });
    }
    parts.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(parts)
}

impl Part {
    fn purl(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }

    /// Whether it is hvbak's own.
    fn own(&self) -> bool {
        self.checksum.is_none()
    }
}

impl Bill {
    fn cyclonedx(&self) -> Value {
        let purls: BTreeMap<&str, String> =
            self.0.iter().map(|p| (p.id.as_str(), p.purl())).collect();
        let components: Vec<Value> = self.0.iter().map(component).collect();
        let depends = |part: &Part| -> Vec<&String> {
            part.needs.iter().filter_map(|id| purls.get(id.as_str())).collect()
        };
        let dependencies: Vec<Value> = self
            .0
            .iter()
            .map(|part| json!({ "ref": part.purl(), "dependsOn": depends(part) }))
            .collect();
        let version = env!("CARGO_PKG_VERSION");
        json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": {
                "type": "application", "name": "hvbak", "version": version,
                "bom-ref": "hvbak", "licenses": [{ "license": { "id": "Apache-2.0" } }],
            } },
            "components": components,
            "dependencies": dependencies,
        })
    }

    /// Every text once, below the names of those that are under it.
    fn texts(&self) -> Result<String> {
        let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut without = Vec::new();
        for part in self.0.iter().filter(|p| !p.own()) {
            let title = format!("{} {} ({})", part.name, part.version, part.licence);
            let mut found = false;
            let mut files: Vec<_> =
                fs::read_dir(&part.folder)?.flatten().map(|e| e.path()).collect();
            files.sort();
            for path in files.iter().filter(|p| is_licence(p)) {
                let text = String::from_utf8_lossy(&fs::read(path)?).replace('\r', "");
                texts.entry(text.trim().to_owned()).or_default().push(title.clone());
                found = true;
            }
            if !found {
                without.push(title);
            }
        }
        let mut out = String::from(
            "Crates that are linked into hvbak and hvbak-worker, and their licences.\n",
        );
        if !without.is_empty() {
            out += "\nWithout a text of their own; their manifests name the licence:\n\n";
            without.iter().for_each(|title| out += &format!("    {title}\n"));
        }
        for (text, titles) in texts {
            out += &format!("\n{}\n\n", "=".repeat(78));
            titles.iter().for_each(|title| out += &format!("    {title}\n"));
            out += &format!("\n{text}\n");
        }
        Ok(out)
    }

    /// Fails unless the spec's `License:` is what is in.
    pub fn compare(&self, spec: &str) -> Result<()> {
        let mut terms = BTreeSet::new();
        for part in &self.0 {
            terms.extend(chosen(&part.licence).with_context(|| part.purl())?);
        }
        let wanted = terms.into_iter().collect::<Vec<_>>().join(" AND ");
        let line = spec.lines().find_map(|l| l.strip_prefix("License:")).unwrap_or("").trim();
        ensure!(line == wanted, "packaging/hvbak.spec must say `License: {wanted}`");
        Ok(())
    }
}

fn component(part: &Part) -> Value {
    let mut value = json!({
        "type": "library", "name": part.name, "version": part.version, "bom-ref": part.purl(),
        "purl": part.purl(), "licenses": [{ "expression": part.licence }],
    });
    if let (Some(sum), Some(object)) = (&part.checksum, value.as_object_mut()) {
        object.insert("hashes".into(), json!([{ "alg": "SHA-256", "content": sum }]));
    }
    value
}

fn is_licence(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    let kinds = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE", "COPYRIGHT"];
    path.is_file() && kinds.iter().any(|kind| name.starts_with(kind))
}

/// The licences that are taken of an SPDX expression: of every OR one, of every AND all.
fn chosen(expression: &str) -> Result<BTreeSet<String>> {
    let mut out = BTreeSet::new();
    for all in split(expression, " AND ") {
        let all = all.strip_prefix('(').and_then(|a| a.strip_suffix(')')).unwrap_or(all);
        let offers = split(all, " OR ");
        let best = PREFERRED.iter().find(|p| offers.contains(*p)).copied();
        match best.or_else(|| offers.first().copied()) {
            // Nothing beyond one level of brackets is in use.
            Some(one) if !one.contains(['(', ')']) => drop(out.insert(one.to_owned())),
            Some(one) if one.contains(" AND ") => out.extend(chosen(one)?),
            _ => bail!("the licence `{expression}` is too deep for this reader"),
        }
    }
    Ok(out)
}

/// Splits where no bracket is open.
fn split<'a>(text: &'a str, by: &str) -> Vec<&'a str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ' ' if depth == 0 && text[at..].starts_with(by) && at >= from => {
                parts.push(&text[from..at]);
                from = at + by.len();
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expected: &[&str]) {
        let found: Vec<_> = chosen(expression).unwrap().into_iter().collect();
        assert_eq!(found, expected, "{expression}");
    }

    #[test]
    fn of_several_licences_one_is_taken() {
        check("MIT", &["MIT"]);
        check("MIT OR Apache-2.0", &["Apache-2.0"]);
        check("Unlicense OR MIT", &["MIT"]);
        check("Zlib OR 0BSD", &["Zlib"]);
        check("(MIT OR Apache-2.0) AND Unicode-3.0", &["Apache-2.0", "Unicode-3.0"]);
        check("Apache-2.0 AND ISC", &["Apache-2.0", "ISC"]);
        check("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", &["Apache-2.0"]);
    }
}
