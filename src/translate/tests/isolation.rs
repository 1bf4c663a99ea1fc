//! Namespaces belong to different people: what an object may name, and that nothing else is looked at.
//!
//! [`fields!`] takes every type of the API apart. A new field does not compile here before it has its place,
//! a new type is found by [`every_type_is_listed`], and a field that names something needs a row in [`ROWS`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use tidegate_model::{Cluster, ObjectName, Target};

use super::{input, now};
use crate::api;
use crate::api::conditions::Reason;
use crate::translate::{Inputs, ServiceResolution, Translation, translate};

/// What a field names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    Secret,
    ConfigMap,
    Service,
    Agent,
    /// A kind without namespace.
    Issuer,
}

macro_rules! fields {
    ($($type:ident { $($field:ident $(=> $what:ident)?),* })*) => {
        /// Compiles while every field is in the list.
        #[allow(dead_code, non_snake_case, clippy::too_many_arguments, clippy::too_many_lines, reason = "never called")]
        fn taken_apart($($type: api::$type),*) {
            $(let api::$type { $($field: _),* } = $type;)*
        }

        const TYPES: &[&str] = &[$(stringify!($type)),*];

        /// Type, field, and what it names.
        const REFERENCES: &[(&str, &str, Named)] = &[
            $($($((stringify!($type), stringify!($field), Named::$what),)?)*)*
        ];
    };
}

#[rustfmt::skip]
fields! {
    TlsRouteSpec { hostnames, class_name, suspend, tracker_group, tls, http, rules }
    TlsPolicy { mode, issuer_ref, secret_name => Secret, min_version, client_auth }
    IssuerRef { name => Issuer, kind }
    ClientAuth { ca_secret_name => Secret, ca_config_map_name => ConfigMap, mode }
    HttpPolicy { plain, redirect_status, hsts }
    Hsts { max_age, include_sub_domains, preload }
    RouteRule { name, hostnames, r#match, matches, filters, backends, load_balancing, health_check, circuit, timeouts, limits, tracker }
    Match { path_prefix, path, method, headers, query_params }
    PathCondition { type_, value }
    HeaderCondition { type_, name, value }
    QueryCondition { type_, name, value }
    RuleTimeouts { connect, first_byte, idle, request, upgraded_idle }
    RuleLimits { request_body, requests_per_client }
    Tracker { type_, exposure, port, address_parameters, probe, udp }
    TrackerProbe { interval }
    UdpTracker { port, addresses, mode, max_sessions, connects_per_second }
    Filter { type_, request_header_modifier, response_header_modifier, request_redirect, url_rewrite, request_mirror, cors, rate_limit, ip_access, basic_auth, forward_auth, compression, fixed_response }
    HeaderModifier { set, add, remove }
    RedirectFilter { scheme, hostname, path, port, status_code }
    RewriteFilter { hostname, path }
    PathModifier { type_, replace_full_path, replace_prefix_match, regular_expression }
    PathSubstitution { pattern, substitution }
    MirrorFilter { backend, percent }
    CorsFilter { allow_origins, allow_methods, allow_headers, expose_headers, allow_credentials, max_age }
    RateLimitFilter { requests_per_second, requests, period, burst, key, header }
    IpAccessFilter { allow, deny }
    BasicAuthFilter { secret_name => Secret, realm, user_header }
    ForwardAuthFilter { backend, path, request_headers, response_headers, timeout }
    CompressionFilter { algorithms, min_size, content_types }
    FixedResponseFilter { status, body, content_type }
    Backend { service, address, agent, r#static, weight, protocol, tls, proxy_protocol }
    ServiceRef { name => Service, port }
    AgentRef { name => Agent, target }
    StaticFiles { path, index, listing, fallback }
    BackendTls { server_name, ca_secret_name => Secret, ca_config_map_name => ConfigMap, insecure_skip_verify }
    LoadBalancer { policy, hash, cookie }
    HashPolicy { key, header }
    StickyCookie { name, max_age }
    HealthCheck { active, passive }
    ActiveHealth { path, host, headers, expected_status, interval, timeout, healthy_threshold, unhealthy_threshold }
    PassiveHealth { consecutive_failures, ejection_time }
    Circuit { max_requests }
    HttpField { name, value }
    TunnelAgentSpec { class_name, suspend, credential, allowed_hostnames, allowed_ports, optional, hold, probe_interval, mappings }
    AgentCredential { secret_name => Secret }
    AgentMapping { name, hostname, port, target, protocol, proxy_protocol, tls, enabled, description, limits, rate_limit, access }
    MappingTls { insecure_skip_verify, server_name, ca_secret_name => Secret, ca_config_map_name => ConfigMap }
    AcmeIssuerSpec { default, class_name, directory, staging_directory, contact, terms_of_service_agreed, profile, key_type, external_account_binding, account_secret_name, ca_secret_name => Secret, renewal_information_source, fallback_issuer => Issuer, solvers, notifications }
    ExternalAccountBinding { key_id, key_secret_ref }
    SecretKeyRef { name => Secret, key }
    Solver { name, selector, http01, tls_alpn01, dns01, dns_persist01 }
    SolverSelector { dns_zones, dns_names }
    Http01Solver {}
    TlsAlpn01Solver {}
    DnsPersist01Solver {}
    Dns01Solver { rfc2136, webhook, exec, provider, propagation_timeout, name_servers }
    Rfc2136Solver { server, zone, tsig }
    TsigKey { key_name, algorithm, secret_ref }
    WebhookSolver { url, auth, ca_secret_name => Secret }
    WebhookAuth { basic, bearer }
    WebhookBasicAuth { secret_name => Secret }
    WebhookBearerAuth { secret_ref }
    ExecSolver { command, args, environment_secret_name => Secret }
    ProviderSolver { name, credentials, zone }
    ProviderCredentials { secret_name => Secret, keys }
    Notification { name, events, webhook, smtp }
    WebhookNotification { template, url, url_secret_ref, authorization_secret_ref, matrix_room, ca_secret_name => Secret }
    SmtpNotification { host, port, security, from, to, username, password_secret_ref, ca_secret_name => Secret }
}

/// Field, kind of the object, its specification in which `NAME` is what is named, and the reason if it is missing.
type Row = (&'static str, &'static str, String, Reason);

fn rows() -> Vec<Row> {
    let route = |field, spec: &str, reason| {
        let spec = format!("{{hostnames: [a.example.com], {spec}}}");
        (field, "TlsRoute", spec, reason)
    };
    let backend = |inner: &str| format!("rules: [{{backends: [{inner}]}}]");
    let filter = |inner: &str| {
        format!(
            "rules: [{{filters: [{inner}], backends: [{{service: {{name: good, port: 80}}}}]}}]"
        )
    };
    let tls = |inner: &str| {
        format!("tls: {{{inner}}}, rules: [{{backends: [{{service: {{name: good, port: 80}}}}]}}]")
    };
    let issuer = |field, spec: &str| {
        let spec =
            format!("{{directory: 'https://ca.example/dir', termsOfServiceAgreed: true, {spec}}}");
        (field, "AcmeIssuer", spec, Reason::SecretNotFound)
    };
    let dns = |inner: &str| format!("solvers: [{{name: a, dns01: {{{inner}}}}}]");
    let mut all = Vec::new();
    // Wherever a backend may stand.
    let service = "{service: {name: NAME, port: 80}}";
    let secret = "{service: {name: good, port: 80}, tls: {caSecretName: NAME}}";
    let map = "{service: {name: good, port: 80}, tls: {caConfigMapName: NAME}}";
    for (field, inner, reason) in [
        ("ServiceRef.name", service, Reason::BackendNotFound),
        ("BackendTls.ca_secret_name", secret, Reason::SecretNotFound),
        (
            "BackendTls.ca_config_map_name",
            map,
            Reason::ConfigMapNotFound,
        ),
    ] {
        all.push(route(field, &backend(inner), reason));
        let mirror = format!("{{type: RequestMirror, requestMirror: {{backend: {inner}}}}}");
        all.push(route(field, &filter(&mirror), reason));
        let auth = format!("{{type: ForwardAuth, forwardAuth: {{backend: {inner}}}}}");
        all.push(route(field, &filter(&auth), reason));
        let passthrough = format!("tls: {{mode: Passthrough}}, {}", backend(inner));
        all.push(route(field, &passthrough, reason));
    }
    let agent = "{agent: {name: NAME, target: 'http://192.168.1.2'}}";
    all.push(route(
        "AgentRef.name",
        &backend(agent),
        Reason::AgentNotFound,
    ));
    all.push(route(
        "TlsPolicy.secret_name",
        &tls("secretName: NAME"),
        Reason::SecretNotFound,
    ));
    for (field, member, reason) in [
        (
            "ClientAuth.ca_secret_name",
            "caSecretName",
            Reason::SecretNotFound,
        ),
        (
            "ClientAuth.ca_config_map_name",
            "caConfigMapName",
            Reason::ConfigMapNotFound,
        ),
    ] {
        let auth = tls(&format!("clientAuth: {{{member}: NAME}}"));
        all.push(route(field, &auth, reason));
    }
    let basic = filter("{type: BasicAuth, basicAuth: {secretName: NAME}}");
    all.push(route(
        "BasicAuthFilter.secret_name",
        &basic,
        Reason::SecretNotFound,
    ));
    let credential = "{credential: {secretName: NAME}}".to_owned();
    all.push((
        "AgentCredential.secret_name",
        "TunnelAgent",
        credential,
        Reason::SecretNotFound,
    ));
    for (field, member, reason) in [
        (
            "MappingTls.ca_secret_name",
            "caSecretName",
            Reason::SecretNotFound,
        ),
        (
            "MappingTls.ca_config_map_name",
            "caConfigMapName",
            Reason::ConfigMapNotFound,
        ),
    ] {
        let spec = format!(
            "{{credential: {{secretName: NAME}}, allowedHostnames: [a.example.com], mappings: [{{name: a, hostname: a.example.com, target: 'https://nas', tls: {{{member}: NAME}}}}]}}"
        );
        all.push((field, "TunnelAgent", spec, reason));
    }
    let key = "secretRef: {name: NAME, key: token}";
    let sender = "name: a, events: [Failing]";
    for (field, spec) in [
        (
            "AcmeIssuerSpec.ca_secret_name",
            "caSecretName: NAME".to_owned(),
        ),
        (
            "SecretKeyRef.name",
            "externalAccountBinding: {keyId: a, keySecretRef: {name: NAME, key: token}}".to_owned(),
        ),
        (
            "SecretKeyRef.name",
            dns(&format!(
                "rfc2136: {{server: '192.0.2.53', tsig: {{keyName: a, {key}}}}}"
            )),
        ),
        (
            "SecretKeyRef.name",
            dns(&format!(
                "webhook: {{url: 'https://a.example', auth: {{bearer: {{{key}}}}}}}"
            )),
        ),
        (
            "WebhookBasicAuth.secret_name",
            dns("webhook: {url: 'https://a.example', auth: {basic: {secretName: NAME}}}"),
        ),
        (
            "WebhookSolver.ca_secret_name",
            dns("webhook: {url: 'https://a.example', caSecretName: NAME}"),
        ),
        (
            "ExecSolver.environment_secret_name",
            dns("exec: {command: /bin/true, environmentSecretName: NAME}"),
        ),
        (
            "ProviderCredentials.secret_name",
            dns(
                "provider: {name: hetzner, credentials: {secretName: NAME, keys: {apiToken: token}}}",
            ),
        ),
        (
            "SecretKeyRef.name",
            format!(
                "notifications: [{{{sender}, webhook: {{template: json, urlSecretRef: {{name: NAME, key: url}}}}}}]"
            ),
        ),
        (
            "SecretKeyRef.name",
            format!(
                "notifications: [{{{sender}, webhook: {{template: json, url: 'https://a.example', authorizationSecretRef: {{name: NAME, key: token}}}}}}]"
            ),
        ),
        (
            "WebhookNotification.ca_secret_name",
            format!(
                "notifications: [{{{sender}, webhook: {{template: json, url: 'https://a.example', caSecretName: NAME}}}}]"
            ),
        ),
        (
            "SecretKeyRef.name",
            format!(
                "notifications: [{{{sender}, smtp: {{host: a.example, from: a@b.example, to: [a@b.example], username: a, passwordSecretRef: {{name: NAME, key: token}}}}}}]"
            ),
        ),
        (
            "SmtpNotification.ca_secret_name",
            format!(
                "notifications: [{{{sender}, smtp: {{host: a.example, from: a@b.example, to: [a@b.example], caSecretName: NAME}}}}]"
            ),
        ),
    ] {
        all.push(issuer(field, &spec));
    }
    all
}

/// Where the object is, where another one's things are, and where the program's are.
const NAMESPACES: [&str; 3] = ["own", "foreign", "program"];
const TARGET: &str = "the-named-one";

/// The object alone, in a cluster.
fn inputs(row: &Row) -> Inputs {
    let (_, kind, spec, _) = row;
    let namespace = match *kind {
        "AcmeIssuer" => "",
        _ => ", namespace: own",
    };
    let spec = spec.replace("NAME", TARGET);
    let text = format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: it{namespace}}}\nspec: {spec}\n---\n\
         {{kind: TestService, name: own/good, ports: [{{port: 80, ready: ['10.0.0.1:80']}}]}}\n---\n\
         {{kind: TestEnvironment, cluster: true, systemNamespace: program}}\n"
    );
    input::steps(&text).remove(0)
}

/// Everything of that name and of every kind, in that namespace.
fn add_everything(inputs: &mut Inputs, namespace: &str, named: bool) {
    // Only where one is named: of others there would be more to tell.
    let class = if named { "" } else { "className: another, " };
    for text in [
        format!("{{kind: TestCertificate, names: [a.example.com], secret: {namespace}/{TARGET}}}"),
        format!(
            "{{kind: TestService, name: {namespace}/{TARGET}, ports: [{{port: 80, ready: ['10.66.6.6:80']}}]}}"
        ),
        format!(
            "{{kind: TunnelAgent, metadata: {{name: {TARGET}, namespace: {namespace}}}, spec: {{{class}credential: {{secretName: {TARGET}}}}}}}"
        ),
    ] {
        for document in input::documents(&text) {
            input::add(inputs, document);
        }
    }
    let name = ObjectName::new(namespace, TARGET);
    let secret = Arc::make_mut(inputs.secrets.get_mut(&name).unwrap());
    let pem = secret.data["tls.crt"].clone();
    secret.data.insert("ca.crt".to_owned(), pem.clone());
    for (key, value) in [
        (
            "auth",
            "canary:$2y$05$c4Zlk9nZCanaryCanaryCanaryCanaryCanaryCanaryCanaryCanary",
        ),
        ("token", "Y2FuYXJ5"),
        ("username", "canary"),
        ("password", "canary"),
        ("url", "https://canary.example"),
    ] {
        secret
            .data
            .insert(key.to_owned(), value.as_bytes().to_vec());
    }
    let map = crate::translate::ConfigMapData {
        data: [("ca.crt".to_owned(), String::from_utf8(pem).unwrap())].into(),
    };
    inputs.config_maps.insert(name, Arc::new(map));
}

/// All that anybody is told, and all that is served.
fn told(translation: &Translation) -> String {
    let statuses = &translation.statuses;
    let all = [
        serde_json::to_string_pretty(&statuses.routes.values().collect::<Vec<_>>()),
        serde_json::to_string_pretty(&statuses.issuers.values().collect::<Vec<_>>()),
    ];
    let own = statuses.agents.iter().filter(|(id, _)| &*id.name == "it");
    let own = serde_json::to_string_pretty(&own.map(|it| it.1).collect::<Vec<_>>());
    let mut text: String = all.into_iter().chain([own]).map(Result::unwrap).collect();
    for problem in &translation.problems {
        writeln!(text, "{} {problem}", problem.reason).unwrap();
    }
    write!(text, "{:?}", translation.snapshot).unwrap();
    text
}

fn missing(translation: &Translation, reason: Reason) -> bool {
    translation.problems.iter().any(|it| it.reason == reason)
}

#[test]
fn only_the_own_namespace_is_looked_at() {
    for row in rows() {
        let (field, kind, spec, reason) = &row;
        let right = if *kind == "AcmeIssuer" {
            "program"
        } else {
            "own"
        };
        let nowhere = translate(&inputs(&row), now());
        assert!(
            missing(&nowhere, *reason),
            "{field} {spec} is not asked for: {:?}",
            nowhere.problems
        );
        for namespace in NAMESPACES {
            let mut inputs = inputs(&row);
            let named = *field == "AgentRef.name" && namespace == "own";
            add_everything(&mut inputs, namespace, named);
            let found = translate(&inputs, now());
            for reference in &found.references {
                let asked = &*reference.name.namespace;
                assert_eq!(asked, right, "{field} {spec} asks for {reference:?}");
            }
            if namespace == right {
                let wrong = &found.problems;
                assert!(
                    !missing(&found, *reason),
                    "{field} {spec} is not found: {wrong:?}"
                );
            } else {
                // To the letter what is said when there is nothing anywhere.
                assert_eq!(told(&found), told(&nowhere), "{field} {spec} {namespace}");
            }
        }
    }
}

/// The same without Kubernetes, where one person owns all files: there the hint helps.
#[test]
fn standalone_says_where_a_secret_is() {
    let row = rows()
        .into_iter()
        .find(|row| row.0 == "TlsPolicy.secret_name")
        .unwrap();
    let mut inputs = inputs(&row);
    inputs.environment.services = ServiceResolution::Dns;
    add_everything(&mut inputs, "foreign", false);
    let text = told(&translate(&inputs, now()));
    assert!(
        text.contains("Secret foreign/the-named-one exists"),
        "{text}"
    );
}

#[test]
fn every_field_that_names_something_has_a_row() {
    let rows = rows();
    let tried: BTreeSet<&str> = rows.iter().map(|row| row.0).collect();
    let mut listed = BTreeSet::new();
    for (type_, field, named) in REFERENCES {
        if *named != Named::Issuer {
            listed.insert(format!("{type_}.{field}"));
        }
    }
    assert_eq!(tried.len(), listed.len());
    for field in &listed {
        assert!(tried.contains(field.as_str()), "no row for {field}");
    }
}

/// A field of a new type is a new field; this finds the fields of that type.
#[test]
fn every_type_is_listed() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    let declared = regex::Regex::new(r"(?m)^pub struct (\w+) \{").unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for found in declared.captures_iter(&text) {
            let name = &found[1];
            let written_by_people = !name.ends_with("Status")
                && !["AgentPort", "AgentSession", "CelError"].contains(&name);
            if written_by_people {
                assert!(TYPES.contains(&name), "{name} is not listed");
                count += 1;
            }
        }
    }
    assert_eq!(count, TYPES.len());
}

#[test]
fn a_hostname_of_another_namespace_is_refused_without_telling_whose_it_is() {
    let text = "
        {kind: TestEnvironment, cluster: true}
---
        apiVersion: edge.tidegate.dev/v1alpha1
        kind: TlsRoute
        metadata: {name: hidden-owner, namespace: foreign, creationTimestamp: '2025-01-01T00:00:00Z'}
        spec: {hostnames: [a.example.com], trackerGroup: g, rules: [{tracker: {}, backends: [{service: {name: good, port: 80}}]}]}
---
        apiVersion: edge.tidegate.dev/v1alpha1
        kind: TlsRoute
        metadata: {name: it, namespace: own, creationTimestamp: '2025-01-02T00:00:00Z'}
        spec: {hostnames: [a.example.com, b.example.com], trackerGroup: g, rules: [{tracker: {exposure: Direct}, backends: [{service: {name: good, port: 80}}]}]}
---
        apiVersion: edge.tidegate.dev/v1alpha1
        kind: TlsRoute
        metadata: {name: sibling, namespace: own, creationTimestamp: '2025-01-03T00:00:00Z'}
        spec: {hostnames: [c.example.com], rules: [{backends: [{service: {name: good, port: 80}}]}]}
---
        apiVersion: edge.tidegate.dev/v1alpha1
        kind: TlsRoute
        metadata: {name: youngest, namespace: own, creationTimestamp: '2025-01-04T00:00:00Z'}
        spec: {hostnames: [a.example.com, c.example.com], rules: [{backends: [{service: {name: good, port: 80}}]}]}
---
        {kind: TestService, name: own/good, ports: [{port: 80, ready: ['10.0.0.1:80']}]}
---
        {kind: TestService, name: foreign/good, ports: [{port: 80, ready: ['10.66.6.6:80']}]}
    ";
    let inputs = input::steps(text).remove(0);
    let translation = translate(&inputs, now());
    let youngest = ObjectName::new("own", "youngest");
    let status = serde_json::to_string(&translation.statuses.routes[&youngest]).unwrap();
    for said in [
        "a.example.com already belongs to a TlsRoute of another namespace, which is older",
        "c.example.com already belongs to TlsRoute own/sibling, which is older",
    ] {
        assert!(status.contains(said), "{status}");
    }
    assert!(
        !status.contains("foreign") && !status.contains("hidden-owner"),
        "{status}"
    );
    // Tracker groups of one name in two namespaces are two groups.
    assert!(!missing(&translation, Reason::MixedTrackerProxy));
    // And what is served leads to Services of the route's own namespace only.
    let of = |cluster: &Cluster| match &cluster.target {
        Target::Addresses(all) => all[0].to_string(),
        Target::Host { host, .. } => host.clone(),
        Target::Agent { agent, .. } => agent.to_string(),
    };
    let mut hosts: Vec<_> = translation.snapshot.hosts.values().collect();
    hosts.sort_by(|a, b| a.pattern.cmp(&b.pattern));
    for host in hosts {
        let expected = match &*host.route.namespace {
            "own" => "10.0.0.1:80",
            _ => "10.66.6.6:80",
        };
        for entry in &host.entries {
            for cluster in entry.rule.clusters() {
                assert_eq!(of(cluster), expected, "{}", host.pattern);
            }
        }
    }
}
