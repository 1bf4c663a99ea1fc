//! Telling people: before a certificate expires and when renewal keeps failing.
