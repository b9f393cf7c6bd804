//! The program that reads and writes volumes on a hypervisor
fn main() {}
