//! The repository: layout, locks, points, verification, export
