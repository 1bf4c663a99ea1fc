//! The table of providers, in both builds.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_model::Secret;

use crate::dns::DnsClient;
use crate::dns::providers::{DEFAULT_TIMEOUT, PROVIDERS, Settings, check, solver};

fn settings(provider: &str, keys: &[&str]) -> Settings {
    let credentials: BTreeMap<_, _> = keys
        .iter()
        .map(|key| ((*key).to_owned(), Secret::new("value".to_owned())))
        .collect();
    Settings {
        provider: provider.to_owned(),
        credentials,
        zone: Some("example.test".to_owned()),
        timeout: DEFAULT_TIMEOUT,
    }
}

#[test]
fn table_is_sorted_and_checked() {
    assert!(PROVIDERS.is_sorted_by_key(|provider| provider.name));
    let text = |settings| check(&settings).unwrap_err().to_string();
    assert_eq!(
        text(settings("ovh", &["applicationKey"])),
        "ovh: missing applicationSecret, consumerKey"
    );
    assert_eq!(
        text(settings("hetzner", &["apiToken", "token"])),
        "hetzner: unknown credential \"token\""
    );
    assert_eq!(text(settings("hetzer", &[])), "no DNS provider \"hetzer\"");
    assert!(
        check(&settings(
            "route53",
            &["accessKeyId", "secretAccessKey", "region"]
        ))
        .is_ok()
    );
}

/// With the feature every provider of the table has a constructor; without it the error names the feature.
#[test]
fn every_provider_is_built_or_explained() {
    let resolver = DnsClient::new(Vec::new(), Duration::from_secs(1));
    for provider in PROVIDERS {
        let built = solver(
            &settings(provider.name, provider.required),
            resolver.clone(),
        );
        if cfg!(feature = "dns-providers") {
            match built {
                Ok(solver) => assert_eq!(solver.name(), format!("DNS provider {}", provider.name)),
                // Its constructor reads the key, and "value" is none.
                Err(error) if provider.name == "transip" => {
                    assert_eq!(error.reason(), "DnsProviderFailed");
                }
                Err(error) => panic!("{}: {error}", provider.name),
            }
        } else {
            let error = built.unwrap_err();
            assert!(error.to_string().contains(provider.name), "{error}");
            assert!(
                error.fix().contains("--features dns-providers"),
                "{}",
                error.fix()
            );
        }
    }
}
