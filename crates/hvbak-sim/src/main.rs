//! `hvbak-lab`.
fn main() {}
