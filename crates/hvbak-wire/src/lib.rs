//! Frames and messages between coordinator and worker
