//! Puts compiled routes together: oldest first, each with its own report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_model::{
    Certificate, CertificateOrigin, HostPattern, Hostless, ObjectName, PlainHttp, RouteId,
    Snapshot, TlsMode, TlsPolicy, VirtualHost,
};

use super::agents::Mapped;
use super::certificates::{complaint, covers, parse_certificate};
use super::conflicts::{Claims, age_of, id_of};
use super::dns::{self, Reached};
use super::matches::decides_by_path;
use super::references::References;
use super::report::{Field, Report};
use super::routes::{
    CertificateSource, CompiledRoute, CompiledTls, HostService, compile, note_lost_addresses,
};
use super::solvers::Made;
use super::status::{Conditions, certificate_status, in_one_line, joined};
use super::trackers::TrackerGroups;
use super::udp::{self, UdpPorts};
use super::verdicts::{
    Chosen, Kept, SUMMARY, Served, address_preserved, backends_ready, certificate_ready,
    resolved_refs,
};
use super::{
    GoodRoute, Inputs, IssuerChoice, Kind, Lost, ObjectRef, PublishedSecret, SecretData,
    ServiceResolution, Statuses, Translation, UdpMode, WantedCertificate, agents, exposure,
    issuance, issuers, ports, probes, udp_services,
};
use crate::api::conditions::{Condition, ConditionType, Reason, timestamp};
use crate::api::{CertificateStatus, TlsRoute, TlsRouteStatus};

/// Translates everything. The same inputs at the same moment give the same result.
pub fn translate(inputs: &Inputs, now: SystemTime) -> Translation {
    let mut work = Work {
        inputs,
        now,
        claims: Claims::new(inputs.environment.is_shared()),
        groups: TrackerGroups::new(inputs),
        udp_ports: UdpPorts::default(),
        lost: inputs.exposure.as_ref().and_then(exposure::judge),
        wrong_issuers: BTreeMap::new(),
        barred: BTreeSet::new(),
        result: Translation {
            snapshot: Snapshot {
                default_certificate: inputs.default_certificate.clone(),
                challenges: Arc::clone(&inputs.challenges),
                reach: Arc::clone(&inputs.environment.reach),
                ticket_keys: inputs.ticket_keys.clone(),
                ..Snapshot::default()
            },
            ..Translation::default()
        },
    };
    let mut made = Made::from(&inputs.last_good);
    // Before the routes, which are told when their issuer cannot be used.
    let mut issuers = Vec::new();
    for issuer in inputs.own_issuers() {
        let name = issuer.metadata.name.clone().unwrap_or_default();
        let previous = inputs.last_good.statuses.issuers.get(&name);
        let previous = previous.or(issuer.status.as_ref());
        let previous = previous.map_or(&[][..], |status| &status.conditions);
        let (status, report, settings) =
            issuers::check(inputs, issuer, &name, previous, now, &mut made);
        if let Some(settings) = settings {
            work.result.issuers.insert(name.clone(), Arc::new(settings));
        } else {
            let wrong = issuers::what_is_wrong(&report);
            work.wrong_issuers.insert(name.clone(), wrong);
        }
        issuers.push((name, status, report));
    }
    let mut agents = agents::read_all(inputs);
    work.barred = agents::barred(&agents, &inputs.last_good);
    let mut routes = work.own_routes();
    routes.extend(work.mapped(agents.iter().flat_map(|agent| &agent.mapped)));
    by_age(&mut routes);
    for (_, route, _) in &routes {
        work.groups.settle(route);
    }
    // What agents ask for comes after every object.
    let mut asked = work.mapped(agents.iter().flat_map(|agent| &agent.asked));
    by_age(&mut asked);
    for (id, route, age) in routes.into_iter().chain(asked) {
        work.route(&id, &route, age);
    }
    ports::assign(inputs, now, &mut agents, &mut work.result);
    agents::finish_all(agents, inputs, now, &mut work.result);
    for (name, status, report) in issuers {
        report.close(&mut work.result);
        work.statuses().issuers.insert(name, status);
    }
    let mut result = work.result;
    result.snapshot.hostless = Hostless::of(&result.snapshot.hosts);
    result.last_good.dns_solvers = made.into_used();
    result.unwanted_services = udp_services::unwanted(inputs, &result);
    let relays = &mut result.snapshot.udp_relays;
    relays.sort_by(|a, b| a.id.cmp(&b.id));
    result
        .wanted_certificates
        .sort_by(|a, b| a.route.cmp(&b.route));
    result.last_good.statuses = Arc::clone(&result.statuses);
    result
}

/// The translation under way.
struct Work<'a> {
    inputs: &'a Inputs,
    now: SystemTime,
    claims: Claims,
    groups: TrackerGroups<'a>,
    udp_ports: UdpPorts,
    /// Why no backend learns the addresses of clients.
    lost: Option<Lost>,
    /// What is wrong with issuers that cannot be asked.
    wrong_issuers: BTreeMap<String, String>,
    /// Mappings whose last good version may not be served any more.
    barred: BTreeSet<RouteId>,
    result: Translation,
}

/// A route and how old it is.
type Aged = (RouteId, Arc<TlsRoute>, SystemTime);

fn by_age(routes: &mut [Aged]) {
    routes.sort_by(|a, b| (a.2, &a.0).cmp(&(b.2, &b.0)));
}

// === impl Work ===

impl Work<'_> {
    fn statuses(&mut self) -> &mut Statuses {
        Arc::make_mut(&mut self.result.statuses)
    }

    /// Routes of this edge's class. A second one of the same name is reported, and one that has the name of a
    /// mapping.
    fn own_routes(&mut self) -> Vec<Aged> {
        let mut seen = BTreeSet::new();
        let mut routes = Vec::with_capacity(self.inputs.routes.len());
        for route in &self.inputs.routes {
            if route.spec.class_name != self.inputs.environment.class_name {
                continue;
            }
            let id = id_of(&route.metadata);
            if agents::is_mapping(&id) {
                let mut report = Report::new(reference(&id));
                let message = format!("{:?} has a colon, as only mappings of agents do", id.name);
                report.invalid("metadata.name", message, "give it another name");
                report.close(&mut self.result);
                continue;
            }
            if !seen.insert(id.clone()) {
                let mut report = Report::new(reference(&id));
                report.invalid(
                    "metadata.name",
                    format!("there is already a TlsRoute {id}"),
                    "give one of the two another name",
                );
                report.close(&mut self.result);
                continue;
            }
            let age = age_of(self.inputs, route, &id, self.now);
            self.result.last_good.first_seen.insert(id.clone(), age);
            routes.push((id, Arc::clone(route), age));
        }
        routes
    }

    /// Routes that stand for mappings of agents, with their ages.
    fn mapped<'m>(&mut self, all: impl Iterator<Item = &'m Mapped>) -> Vec<Aged> {
        all.map(|mapped| {
            let age = age_of(self.inputs, &mapped.route, &mapped.id, self.now);
            let known = &mut self.result.last_good.first_seen;
            known.insert(mapped.id.clone(), age);
            (mapped.id.clone(), Arc::clone(&mapped.route), age)
        })
        .collect()
    }

    fn route(&mut self, id: &RouteId, route: &TlsRoute, age: SystemTime) {
        let mut report = Report::new(reference(id));
        let good = self.inputs.last_good.routes.get(id);
        let good = good.filter(|_| !self.barred.contains(id));
        if route.spec.suspend.unwrap_or(false) {
            self.suspended(id, route, report);
            return;
        }
        let chosen = self.choose(&mut report, id, route, good);
        if let Some(good) = good {
            self.result
                .last_good
                .routes
                .insert(id.clone(), good.clone());
        }
        let Some(chosen) = chosen else {
            self.finish_unserved(id, route, report);
            return;
        };
        note_lost_addresses(&mut report, &chosen.compiled);

        let hosts: Vec<HostPattern> = chosen
            .compiled
            .hosts
            .keys()
            .filter(|host| self.claims.claim(&mut report, id, age, &chosen.spec, host))
            .cloned()
            .collect();
        let secure: Vec<HostPattern> = hosts
            .iter()
            .filter(|host| chosen.compiled.is_secure(host))
            .cloned()
            .collect();
        let served = self.certificate(&mut report, id, &chosen, &secure);
        let probes = probes::wanted(self.inputs, id, &chosen.compiled);
        self.result.tracker_probes.extend(probes);
        let programmed = self.program(id, &chosen.compiled, &hosts, served.certificate.as_ref());
        self.relay(&mut report, &chosen.compiled);
        let previous = good.and_then(|good| good.certificate.clone());
        let fine = served
            .certificate
            .as_ref()
            .filter(|certificate| {
                !served.placeholder && complaint(certificate, &secure, self.now).is_none()
            })
            .cloned();
        self.result.last_good.routes.insert(
            id.clone(),
            GoodRoute {
                generation: match chosen.kept {
                    Some(kept) => kept.generation,
                    None => route.metadata.generation,
                },
                spec: Arc::clone(&chosen.spec),
                certificate: fine.or(previous),
            },
        );
        self.finish_served(id, route, report, &chosen, &served, programmed);
    }

    /// The current specification if it is good, else the last good one.
    fn choose(
        &mut self,
        report: &mut Report,
        id: &RouteId,
        route: &TlsRoute,
        good: Option<&GoodRoute>,
    ) -> Option<Chosen> {
        let references = References {
            inputs: self.inputs,
            id,
        };
        if let Some(compiled) = compile(report, &references, &route.spec)
            && self.groups.admit(report, id, &route.spec)
        {
            let spec = match good {
                Some(good) if *good.spec == route.spec => Arc::clone(&good.spec),
                _ => Arc::new(route.spec.clone()),
            };
            return Some(Chosen {
                spec,
                compiled,
                kept: None,
            });
        }
        let good = good?;
        let mut aside = Report::new(reference(id));
        let compiled = compile(&mut aside, &references, &good.spec)?;
        if !self.groups.admit(&mut aside, id, &good.spec) {
            return None;
        }
        // What is missing counts for what is served, not for the text that was refused.
        report.forget(ConditionType::ResolvedRefs);
        report.append(aside);
        Some(Chosen {
            spec: Arc::clone(&good.spec),
            compiled,
            kept: Some(Kept {
                generation: good.generation,
            }),
        })
    }

    fn program(
        &mut self,
        id: &RouteId,
        route: &CompiledRoute,
        hosts: &[HostPattern],
        certificate: Option<&Arc<Certificate>>,
    ) -> usize {
        let mut programmed = 0;
        for host in hosts {
            let Some(service) = route.hosts.get(host) else {
                continue;
            };
            let (tls, entries, plain) = match (&route.tls, service) {
                (_, HostService::Passthrough(Some(cluster))) => (
                    TlsMode::Passthrough(Arc::clone(cluster)),
                    Vec::new(),
                    Vec::new(),
                ),
                (
                    CompiledTls::Terminate {
                        min_version,
                        client_auth,
                        ..
                    },
                    HostService::Rules { entries, plain },
                ) => (
                    TlsMode::Terminate(TlsPolicy {
                        // Without rules over TLS nothing is served there, and the handshake is refused.
                        certificate: certificate.filter(|_| !entries.is_empty()).cloned(),
                        min_version: *min_version,
                        client_auth: client_auth.clone(),
                    }),
                    entries.clone(),
                    plain.clone(),
                ),
                _ => continue,
            };
            programmed += 1;
            self.result.snapshot.hosts.insert(
                host.clone(),
                Arc::new(VirtualHost {
                    pattern: host.clone(),
                    route: id.clone(),
                    plain_http: match &tls {
                        TlsMode::Terminate(_) if entries.is_empty() => PlainHttp::Refuse,
                        _ => route.plain_http.clone(),
                    },
                    plain,
                    tls,
                    hsts: route.hsts.clone(),
                    guards_by_path: entries.iter().any(|entry| decides_by_path(&entry.request)),
                    entries,
                }),
            );
        }
        programmed
    }

    /// Lists the UDP trackers of a route and relays those that are relayed.
    fn relay(&mut self, report: &mut Report, route: &CompiledRoute) {
        let shared = self.inputs.environment.is_shared();
        for udp in &route.udp {
            self.result.udp_trackers.push(udp.tracker.clone());
            if udp.tracker.mode == UdpMode::Service {
                let wanted = udp_services::wanted(self.inputs, &udp.tracker);
                self.result.udp_services.extend(wanted);
            }
            if let Some(relay) = &udp.relay
                && self.udp_ports.claim(report, shared, udp)
            {
                self.result.snapshot.udp_relays.push(Arc::clone(relay));
            }
        }
    }

    /// Finds the certificate of a route and notes what is wrong with it.
    fn certificate(
        &mut self,
        report: &mut Report,
        id: &RouteId,
        chosen: &Chosen,
        hosts: &[HostPattern],
    ) -> Served {
        let CompiledTls::Terminate { source, .. } = &chosen.compiled.tls else {
            return Served::default();
        };
        if hosts.is_empty() {
            return Served::default();
        }
        let last = self
            .inputs
            .last_good
            .routes
            .get(id)
            .and_then(|good| good.certificate.clone())
            .filter(|last| hosts.iter().any(|host| covers(last, host)));
        let tls = Field::SPEC.at("tls");
        let mut note = None;
        let found = if let CertificateSource::Secret(name) = source {
            let found = self.secret_certificate(report, id, name);
            if let Some(found) = &found
                && let Some((reason, message, hint)) = complaint(found, hosts, self.now)
            {
                report.add(tls.at("secretName"), reason, message, hint);
            }
            found
        } else {
            let issuer = issuers::choose(self.inputs, report, source);
            self.want(id, hosts, issuer.as_ref());
            let found = self.inputs.issued.get(id).cloned();
            let complaint = match &found {
                None => Some("no certificate exists yet".to_owned()),
                Some(found) => complaint(found, hosts, self.now).map(|(_, message, _)| message),
            };
            let order = self.inputs.orders.get(id);
            match (complaint, issuer) {
                (Some(message), Some(IssuerChoice::InternalCa)) => {
                    let hint = "the internal CA is issuing one";
                    report.add("spec.tls", Reason::Issuing, message, hint);
                }
                (Some(_), Some(IssuerChoice::Acme(name)))
                    if !self.result.issuers.contains_key(&name) =>
                {
                    report.add(
                        "spec.tls",
                        Reason::OrderFailed,
                        format!("AcmeIssuer {name} cannot be asked for a certificate"),
                        issuers::how_to_mend(self.inputs, &name, self.wrong_issuers.get(&name)),
                    );
                }
                (Some(message), Some(IssuerChoice::Acme(name))) => {
                    issuance::missing(report, &name, &message, order);
                }
                (None, _) if issuance::revoked(report, order) => {}
                (None, _) => {
                    note = order.and_then(issuance::renewal_note).or_else(|| {
                        match self.inputs.published.get(id)? {
                            PublishedSecret::Here(_) => None,
                            PublishedSecret::Foreign(name) => Some(format!(
                                "not published: somebody else made Secret {name}; delete or rename it"
                            )),
                        }
                    });
                }
                (Some(_), None) => {}
            }
            found
        };
        let is_good =
            |certificate: &Arc<Certificate>| complaint(certificate, hosts, self.now).is_none();
        match (found, last) {
            (Some(found), _) if is_good(&found) => Served {
                certificate: Some(found),
                note,
                ..Served::default()
            },
            (found, Some(last)) if is_good(&last) || found.is_none() => Served {
                certificate: Some(last),
                kept: true,
                ..Served::default()
            },
            (Some(found), _) => Served {
                certificate: Some(found),
                ..Served::default()
            },
            (None, _) => Served {
                certificate: (self.inputs.placeholders.get(id))
                    .or(self.inputs.default_certificate.as_ref())
                    .cloned(),
                placeholder: true,
                ..Served::default()
            },
        }
    }

    fn want(&mut self, id: &RouteId, hosts: &[HostPattern], issuer: Option<&IssuerChoice>) {
        if let Some(issuer) = issuer {
            self.result.wanted_certificates.push(WantedCertificate {
                route: id.clone(),
                names: hosts.to_vec(),
                issuer: issuer.clone(),
            });
        }
    }

    fn secret_certificate(
        &mut self,
        report: &mut Report,
        id: &RouteId,
        name: &str,
    ) -> Option<Arc<Certificate>> {
        const TYPE: &str = "kubernetes.io/tls";
        let references = References {
            inputs: self.inputs,
            id,
        };
        let tls = Field::SPEC.at("tls");
        let field = tls.at("secretName");
        let secret = references.secret(report, &field, name)?;
        let full = references.sibling(name);
        if let Some(known) = self.parsed(&full, secret) {
            return Some(known);
        }
        if secret.type_ != TYPE {
            report.add(
                field,
                Reason::InvalidSecret,
                format!("Secret {full} has type {:?}", secret.type_),
                format!("make it of type {TYPE}, with the keys tls.crt and tls.key"),
            );
            return None;
        }
        let certificate = references.secret_key(report, &field, name, &["tls.crt"]);
        let key = references.secret_key(report, &field, name, &["tls.key"]);
        let origin = CertificateOrigin::Secret(full.to_string());
        match parse_certificate(certificate?, key?, origin) {
            Ok(certificate) => {
                let certificate = Arc::new(certificate);
                self.result
                    .last_good
                    .parsed
                    .insert(full, (Arc::clone(secret), Arc::clone(&certificate)));
                Some(certificate)
            }
            Err(error) => {
                report.add(
                    field,
                    Reason::InvalidCertificate,
                    format!("Secret {full}: {error}"),
                    error.hint(),
                );
                None
            }
        }
    }

    /// The certificate as it was read from the same Secret before: keys are costly to parse.
    fn parsed(&mut self, name: &ObjectName, secret: &Arc<SecretData>) -> Option<Arc<Certificate>> {
        let known = self
            .result
            .last_good
            .parsed
            .get(name)
            .or_else(|| self.inputs.last_good.parsed.get(name));
        let (data, certificate) = known?.clone();
        if !Arc::ptr_eq(&data, secret) && data != *secret {
            return None;
        }
        self.result
            .last_good
            .parsed
            .insert(name.clone(), (Arc::clone(secret), Arc::clone(&certificate)));
        Some(certificate)
    }

    fn conditions(&self, id: &RouteId, route: &TlsRoute) -> Conditions {
        let known = self.inputs.last_good.statuses.routes.get(id);
        let known = known.or(route.status.as_ref());
        let previous: &[Condition] = known.map_or(&[], |status| &status.conditions);
        Conditions::new(previous, route.metadata.generation, self.now)
    }

    /// The conditions of a route that is not served, and why it is not.
    fn unserved(
        &self,
        id: &RouteId,
        route: &TlsRoute,
        report: &Report,
        reason: Reason,
        message: &str,
    ) -> Conditions {
        let mut conditions = self.conditions(id, route);
        conditions.judge(report, ConditionType::Accepted, Reason::Accepted, "valid");
        resolved_refs(&mut conditions, report);
        conditions.remove(ConditionType::CertificateReady);
        conditions.remove(ConditionType::ClientAddressPreserved);
        conditions.remove(ConditionType::BackendsReady);
        conditions.remove(ConditionType::Reconciling);
        conditions.set(ConditionType::Programmed, false, reason, message);
        conditions.summarize(&SUMMARY);
        conditions
    }

    fn finish_unserved(&mut self, id: &RouteId, route: &TlsRoute, report: Report) {
        let why = "the object is not valid and no earlier version of it is known";
        let conditions = self.unserved(id, route, &report, Reason::NothingToServe, why);
        self.finish(id, route, report, conditions, None, Reached::default());
    }

    /// A suspended route is looked at and reported, but neither served nor given a certificate, and it
    /// claims nothing. That holds at once, also when the object has mistakes.
    fn suspended(&mut self, id: &RouteId, route: &TlsRoute, mut report: Report) {
        let references = References {
            inputs: self.inputs,
            id,
        };
        let compiled = compile(&mut report, &references, &route.spec);
        let good = self.inputs.last_good.routes.get(id);
        let known = if compiled.is_some() {
            Some(GoodRoute {
                generation: route.metadata.generation,
                spec: Arc::new(route.spec.clone()),
                certificate: good.and_then(|good| good.certificate.clone()),
            })
        } else {
            good.cloned()
        };
        if let Some(known) = known {
            self.result.last_good.routes.insert(id.clone(), known);
        }
        let why = "spec.suspend is true";
        let conditions = self.unserved(id, route, &report, Reason::Suspended, why);
        let reached = Reached {
            hostnames: compiled.as_ref().map(dns::names).unwrap_or_default(),
            ..Reached::default()
        };
        self.finish(id, route, report, conditions, None, reached);
    }

    fn finish_served(
        &mut self,
        id: &RouteId,
        route: &TlsRoute,
        mut report: Report,
        chosen: &Chosen,
        served: &Served,
        programmed: usize,
    ) {
        let mut conditions = self.conditions(id, route);
        let udp = chosen.compiled.udp.iter();
        let judged: Vec<_> = udp
            .map(|udp| udp::judge(&mut report, self.inputs, udp))
            .collect();
        let kept = chosen.kept.map(|kept| match kept.generation {
            Some(generation) => format!("generation {generation} stays in use"),
            None => "the last good version stays in use".to_owned(),
        });
        match report.of(ConditionType::Accepted).next() {
            None => conditions.set(ConditionType::Accepted, true, Reason::Accepted, "valid"),
            Some(first) => {
                let mut message = joined(report.of(ConditionType::Accepted));
                if let Some(kept) = &kept {
                    message = format!("{message}\n{kept}");
                }
                conditions.set(ConditionType::Accepted, false, first.reason, message);
            }
        }
        resolved_refs(&mut conditions, &report);
        let services = self.inputs.environment.services == ServiceResolution::Objects;
        let agents = report.mappings().next().is_some() && self.inputs.agents_seen.is_some();
        if services || agents {
            backends_ready(&mut conditions, &report, agents);
        } else {
            conditions.remove(ConditionType::BackendsReady);
        }
        certificate_ready(&mut conditions, &report, chosen, served);
        let claimed = chosen.compiled.hosts.len();
        let relayed = chosen.compiled.udp.iter().any(|udp| udp.relay.is_some());
        match (&kept, programmed) {
            (Some(kept), _) => {
                conditions.set(
                    ConditionType::Programmed,
                    false,
                    Reason::LastGoodKept,
                    kept.clone(),
                );
            }
            (None, _) if report.has(ConditionType::Programmed) => {
                conditions.judge(&report, ConditionType::Programmed, Reason::Programmed, "");
            }
            (None, 0) if claimed == 0 && relayed => conditions.set(
                ConditionType::Programmed,
                true,
                Reason::Programmed,
                "datagrams are relayed",
            ),
            (None, 0) if claimed == 0 => conditions.set(
                ConditionType::Programmed,
                true,
                Reason::NotNeeded,
                "clients reach every tracker of the route without this edge",
            ),
            (None, 0) => conditions.set(
                ConditionType::Programmed,
                false,
                Reason::NothingToServe,
                "none of the hostnames can be served",
            ),
            (None, _) => conditions.set(
                ConditionType::Programmed,
                true,
                Reason::Programmed,
                if programmed == claimed {
                    "served".to_owned()
                } else {
                    format!("{programmed} of {claimed} hostnames are served")
                },
            ),
        }
        address_preserved(&mut conditions, &report, chosen, &judged);
        if let Some(lost) = &self.lost
            && claimed > 0
            && !report.has(ConditionType::ClientAddressPreserved)
        {
            let type_ = ConditionType::ClientAddressPreserved;
            conditions.set(type_, false, lost.reason, lost.summary());
        } else if !report.has(ConditionType::ClientAddressPreserved) {
            probes::judge(&mut conditions, self.inputs, id, &chosen.compiled);
        }
        conditions.summarize(&SUMMARY);
        let certificate = served
            .certificate
            .as_deref()
            .filter(|_| !served.placeholder);
        let reached = Reached::of(self.inputs, &chosen.spec, &chosen.compiled);
        self.finish(id, route, report, conditions, certificate, reached);
    }

    fn finish(
        &mut self,
        id: &RouteId,
        route: &TlsRoute,
        report: Report,
        conditions: Conditions,
        certificate: Option<&Certificate>,
        reached: Reached,
    ) {
        let order = self.inputs.orders.get(id);
        let status = TlsRouteStatus {
            observed_generation: route.metadata.generation,
            conditions: conditions.into_inner(),
            hosts: in_one_line(&reached.hostnames),
            hostnames: reached.hostnames,
            certificate: certificate.map(|certificate| {
                let status = certificate_status(certificate);
                let published = match self.inputs.published.get(id) {
                    Some(PublishedSecret::Here(name)) => Some(name.clone()),
                    Some(PublishedSecret::Foreign(_)) | None => None,
                };
                CertificateStatus {
                    renew_at: order.and_then(|order| order.renew_at).map(timestamp),
                    secret_name: status.secret_name.or(published),
                    ..status
                }
            }),
            order: order.and_then(issuance::order_status),
            preflight: order.map_or_else(Vec::new, issuance::preflight_status),
            addresses: reached.addresses,
            dns_records: reached.dns_records,
        };
        self.statuses().routes.insert(id.clone(), status);
        report.close(&mut self.result);
    }
}

fn reference(id: &RouteId) -> ObjectRef {
    ObjectRef {
        kind: Kind::TlsRoute,
        namespace: Some(id.namespace.to_string()),
        name: id.name.to_string(),
    }
}
