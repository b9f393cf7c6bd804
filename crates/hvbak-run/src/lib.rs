//! Jobs: backup, restore, enrolment and cleanup as journaled steps
