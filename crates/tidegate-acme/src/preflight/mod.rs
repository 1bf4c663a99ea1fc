//! Checks before an order: an order that must fail is not placed.
