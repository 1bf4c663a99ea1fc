//! Both ends of a link over memory: what passes, and every way a healthy link could be lost.

mod bodies;
mod carries;
mod ends;
mod stalls;
mod support;
mod traps;
