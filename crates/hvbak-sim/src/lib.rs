//! The lab: a simulated engine over real OpenSSH hosts and real qcow2 storage
