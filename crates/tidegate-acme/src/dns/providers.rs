//! DNS providers with an API of their own, by the crate `dns-update`, behind the cargo feature `dns-providers`.
//!
//! The table of names and credential keys is always there, so that settings are checked the same in every
//! build; without the feature building a solver is an error that names the feature. The crate brings a second
//! HTTP client, which is why it is not compiled by default.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_model::Secret;

use super::{DnsClient, DnsSolver, SolverError};

/// Time for one API call when nothing else is set.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A provider and what it wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provider {
    /// Name in the settings.
    pub name: &'static str,
    /// Credentials that must be given.
    pub required: &'static [&'static str],
    /// Credentials and settings that may be given.
    pub optional: &'static [&'static str],
}

const fn provider(
    name: &'static str,
    required: &'static [&'static str],
    optional: &'static [&'static str],
) -> Provider {
    Provider {
        name,
        required,
        optional,
    }
}

/// Every provider that can be named, by name.
pub const PROVIDERS: &[Provider] = &[
    provider("bunny", &["apiKey"], &[]),
    provider("cloudflare", &["apiToken"], &[]),
    provider("desec", &["token"], &[]),
    provider("digitalocean", &["token"], &[]),
    provider("dnsimple", &["token", "accountId"], &[]),
    provider("duckdns", &["token"], &[]),
    provider("exoscale", &["apiKey", "apiSecret"], &[]),
    provider("gandi", &["token"], &[]),
    provider("gcore", &["token"], &[]),
    provider("godaddy", &["apiKey", "apiSecret"], &[]),
    provider("hetzner", &["apiToken"], &[]),
    provider("hostingde", &["apiKey"], &[]),
    provider("infomaniak", &["token"], &[]),
    provider("inwx", &["username", "password"], &[]),
    provider("ionos", &["apiKey"], &[]),
    provider("linode", &["token"], &[]),
    provider(
        "namecheap",
        &["apiUser", "apiKey", "clientIp"],
        &["username"],
    ),
    provider("netcup", &["customerNumber", "apiKey", "apiPassword"], &[]),
    provider("ns1", &["apiKey"], &[]),
    provider(
        "ovh",
        &["applicationKey", "applicationSecret", "consumerKey"],
        &["endpoint"],
    ),
    provider("pdns", &["apiKey"], &["endpoint", "serverName"]),
    provider("porkbun", &["apiKey", "secretApiKey"], &[]),
    provider(
        "route53",
        &["accessKeyId", "secretAccessKey"],
        &["sessionToken", "region", "hostedZoneId"],
    ),
    provider("scaleway", &["token"], &[]),
    provider("transip", &["login", "privateKey"], &[]),
    provider("vultr", &["apiKey"], &[]),
];

/// What a provider's solver needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name in [`PROVIDERS`].
    pub provider: String,
    /// By the keys of the table.
    pub credentials: BTreeMap<String, Secret<String>>,
    /// The zone as the provider knows it; found by SOA when not given.
    pub zone: Option<String>,
    /// Time for one API call.
    pub timeout: Duration,
}

/// Checks provider and keys against the table, in every build.
pub fn check(settings: &Settings) -> Result<&'static Provider, SolverError> {
    let wrong = |what: String, fix: String| SolverError::Settings { what, fix };
    let Some(provider) = PROVIDERS.iter().find(|p| p.name == settings.provider) else {
        let names: Vec<&str> = PROVIDERS.iter().map(|p| p.name).collect();
        return Err(wrong(
            format!("no DNS provider {:?}", settings.provider),
            format!(
                "use one of {}, or rfc2136, webhook or exec",
                names.join(", ")
            ),
        ));
    };
    let given = |key: &&&str| {
        settings
            .credentials
            .get(**key)
            .is_none_or(|value| value.expose().trim().is_empty())
    };
    let missing: Vec<&str> = provider.required.iter().filter(given).copied().collect();
    if !missing.is_empty() {
        return Err(wrong(
            format!("{}: missing {}", provider.name, missing.join(", ")),
            format!("give {} in the credentials", provider.required.join(", ")),
        ));
    }
    let known = |key: &str| provider.required.contains(&key) || provider.optional.contains(&key);
    if let Some(key) = settings.credentials.keys().find(|key| !known(key)) {
        let known = [provider.required, provider.optional].concat();
        return Err(wrong(
            format!("{}: unknown credential {key:?}", provider.name),
            format!("known are {}", known.join(", ")),
        ));
    }
    Ok(provider)
}

/// A solver for the provider. `resolver` finds the zone.
#[cfg(not(feature = "dns-providers"))]
pub fn solver(
    settings: &Settings,
    _resolver: DnsClient,
) -> Result<Arc<dyn DnsSolver>, SolverError> {
    let provider = check(settings)?;
    Err(SolverError::Settings {
        what: format!(
            "this build of tidegate has no DNS provider APIs, {} among them",
            provider.name
        ),
        fix: "build with `--features dns-providers`, or use rfc2136, webhook or exec".to_owned(),
    })
}

/// A solver for the provider. `resolver` finds the zone.
#[cfg(feature = "dns-providers")]
pub fn solver(settings: &Settings, resolver: DnsClient) -> Result<Arc<dyn DnsSolver>, SolverError> {
    let provider = check(settings)?;
    let updater = live::updater(settings).map_err(|error| live::failed(provider.name, &error))?;
    Ok(Arc::new(live::ProviderSolver {
        provider: provider.name,
        updater,
        zone: settings.zone.clone(),
        resolver,
    }))
}

#[cfg(feature = "dns-providers")]
mod live {
    use std::fmt;
    use std::time::SystemTime;

    use async_trait::async_trait;
    use dns_update::providers::route53::Route53Config;
    use dns_update::{DnsRecord, DnsRecordType, DnsUpdater, Error};

    use super::super::{DnsClient, DnsSolver, SolverError, TxtRecord, zone};
    use super::Settings;

    pub(super) struct ProviderSolver {
        pub(super) provider: &'static str,
        pub(super) updater: DnsUpdater,
        pub(super) zone: Option<String>,
        pub(super) resolver: DnsClient,
    }

    impl fmt::Debug for ProviderSolver {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("ProviderSolver")
                .field("provider", &self.provider)
                .field("zone", &self.zone)
                .finish_non_exhaustive()
        }
    }

    pub(super) fn failed(provider: &str, error: &Error) -> SolverError {
        SolverError::Provider {
            provider: provider.to_owned(),
            problem: error.to_string(),
            fix: match error {
                Error::Unauthorized => {
                    "give credentials that are valid and may edit the zone's records".to_owned()
                }
                Error::NotFound => {
                    "check that the zone is at this provider and account, or give zone".to_owned()
                }
                _ => format!("look up the answer in the API documentation of {provider}"),
            },
        }
    }

    pub(super) fn updater(settings: &Settings) -> Result<DnsUpdater, Error> {
        let some = |key: &str| settings.credentials.get(key).map(|v| v.expose().trim());
        // The required ones were checked; an empty text is refused by every provider all the same.
        let get = |key: &str| some(key).unwrap_or_default();
        let owned = |key: &str| get(key).to_owned();
        let timeout = Some(settings.timeout);
        match settings.provider.as_str() {
            "bunny" => DnsUpdater::new_bunny(get("apiKey"), timeout),
            "cloudflare" => DnsUpdater::new_cloudflare(get("apiToken"), timeout),
            "desec" => DnsUpdater::new_desec(get("token"), timeout),
            "digitalocean" => DnsUpdater::new_digitalocean(get("token"), timeout),
            "dnsimple" => DnsUpdater::new_dnsimple(get("token"), get("accountId"), timeout),
            "duckdns" => DnsUpdater::new_duckdns(get("token"), timeout),
            "exoscale" => DnsUpdater::new_exoscale(get("apiKey"), get("apiSecret"), timeout),
            "gandi" => DnsUpdater::new_gandiv5(get("token"), timeout),
            "gcore" => DnsUpdater::new_gcore(get("token"), timeout),
            "godaddy" => DnsUpdater::new_godaddy(get("apiKey"), get("apiSecret"), timeout),
            "hetzner" => DnsUpdater::new_hetzner(get("apiToken"), timeout),
            "hostingde" => DnsUpdater::new_hostingde(get("apiKey"), timeout),
            "infomaniak" => DnsUpdater::new_infomaniak(get("token"), timeout),
            "inwx" => DnsUpdater::new_inwx(get("username"), get("password"), false, timeout),
            "ionos" => DnsUpdater::new_ionos(get("apiKey"), timeout),
            "linode" => DnsUpdater::new_linode(get("token"), timeout),
            "namecheap" => DnsUpdater::new_namecheap(
                get("apiUser"),
                get("apiKey"),
                get("clientIp"),
                some("username"),
                timeout,
            ),
            "netcup" => DnsUpdater::new_netcup(
                get("customerNumber"),
                get("apiKey"),
                get("apiPassword"),
                timeout,
            ),
            "ns1" => DnsUpdater::new_ns1(get("apiKey"), timeout),
            "ovh" => DnsUpdater::new_ovh(
                get("applicationKey"),
                get("applicationSecret"),
                get("consumerKey"),
                some("endpoint").unwrap_or("ovh-eu").parse()?,
                timeout,
            ),
            "pdns" => {
                DnsUpdater::new_pdns(get("apiKey"), some("endpoint"), some("serverName"), timeout)
            }
            "porkbun" => DnsUpdater::new_porkbun(get("apiKey"), get("secretApiKey"), timeout),
            "route53" => DnsUpdater::new_route53(Route53Config {
                access_key_id: owned("accessKeyId"),
                secret_access_key: owned("secretAccessKey"),
                session_token: some("sessionToken").map(str::to_owned),
                region: some("region").map(str::to_owned),
                hosted_zone_id: some("hostedZoneId").map(str::to_owned),
                private_zone_only: None,
                endpoint: None,
            }),
            "scaleway" => DnsUpdater::new_scaleway(get("token"), timeout),
            "transip" => DnsUpdater::new_transip(get("login"), get("privateKey"), true, timeout),
            "vultr" => DnsUpdater::new_vultr(get("apiKey"), timeout),
            other => Err(Error::Unsupported(other.to_owned())),
        }
    }

    impl ProviderSolver {
        async fn zone_for(&self, record: &TxtRecord) -> Result<String, SolverError> {
            let zone = match &self.zone {
                Some(zone) => zone.clone(),
                None => zone::find_zone(&self.resolver, &record.fqdn).await?,
            };
            Ok(zone.trim_end_matches('.').to_owned())
        }
    }

    #[async_trait]
    impl DnsSolver for ProviderSolver {
        fn name(&self) -> String {
            format!("DNS provider {}", self.provider)
        }

        async fn present(&self, record: &TxtRecord, _now: SystemTime) -> Result<(), SolverError> {
            let zone = self.zone_for(record).await?;
            let value = vec![DnsRecord::TXT(record.value.clone())];
            let ttl = record.ttl_seconds();
            self.updater
                .add_to_rrset(
                    record.fqdn.as_str(),
                    DnsRecordType::TXT,
                    ttl,
                    value,
                    zone.as_str(),
                )
                .await
                .map_err(|error| failed(self.provider, &error))
        }

        async fn remove(&self, record: &TxtRecord, _now: SystemTime) -> Result<(), SolverError> {
            let zone = self.zone_for(record).await?;
            let value = vec![DnsRecord::TXT(record.value.clone())];
            let result = self
                .updater
                .remove_from_rrset(
                    record.fqdn.as_str(),
                    DnsRecordType::TXT,
                    value,
                    zone.as_str(),
                )
                .await;
            match result {
                Ok(()) | Err(Error::NotFound) => Ok(()),
                Err(error) => Err(failed(self.provider, &error)),
            }
        }
    }
}
