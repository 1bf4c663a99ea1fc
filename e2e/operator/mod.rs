//! `tidegate operator` as its users meet it: routes, certificates, replicas, and what goes wrong around it.

mod agents;
mod api;
mod certificates;
mod outage;
mod replicas;
mod routes;
mod scale;
mod secrets;
mod shared;
