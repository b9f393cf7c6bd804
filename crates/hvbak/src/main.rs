//! `hvbak`.
fn main() {}
