//! SSH sessions to hypervisors: pinned host keys, exec, streams, enrolment
