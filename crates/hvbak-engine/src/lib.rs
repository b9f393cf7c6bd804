//! Client of the oVirt engine's REST API v4
