//! Configurations of other programs become objects.
//!
//! Pure: text in, a plan out. Which files are read, what is written where and what the terminal shows is the
//! caller's; so is whether the objects are right, which `translate` says of these as of any others.

pub mod torrust;
