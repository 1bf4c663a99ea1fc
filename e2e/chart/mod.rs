//! The Helm chart: what it renders, what an API server and its admission say of that, what its roles allow.

mod admission;
mod agents;
mod first_page;
mod gitops;
mod permissions;
mod release;
mod torrust;
mod transparent;
mod udp_trackers;
mod updates;
mod values;
