//! qcow2 reader, writer and checker over byte-addressed storage; no files, no network
