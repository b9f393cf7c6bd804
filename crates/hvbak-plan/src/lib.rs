//! Inventory, catalogue and policy to a plan; pure
