//! An order whose URL was lost with the authority's answer, found again in the account's list of orders.
//!
//! ```text
//! account ─► "orders" (RFC 8555 §7.1.2.1) ─► pages by Link rel="next" ─► the newest that is ours
//! ```
//!
//! Orders carry no time of creation, so that what is ours is told otherwise: one that still wants a
//! signing request takes that of our stored key, whenever it was placed; one that has its certificate is
//! ours only if that certificate has our key. Authorities need not offer the list, and Let's Encrypt does
//! not: it hands out the same pending order again when it is asked for the same names. Nothing here is
//! ever a reason not to order.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::Full;
use instant_acme::{Account, BodyWrapper, BytesResponse, HttpClient, Identifier};
use serde::Deserialize;

use crate::client::AcmeClient;
use crate::issued;
use crate::record::{AccountRecord, Pending};

/// Pages of the list that are read. Pebble's hold three orders each.
const PAGES: usize = 40;
/// Orders that are looked at, the newest first.
const ORDERS: usize = 40;
/// For the whole search.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an order may be in the making before it is left alone.
const PROCESSING: u32 = 10;

/// The URL of an order for these names that the pending key can still use.
pub(crate) async fn find(
    client: &AcmeClient,
    account: &AccountRecord,
    identifiers: &[Identifier],
    pending: &Pending,
) -> Option<String> {
    let search = async {
        let asker = Asker::new(client, account).await?;
        asker.search(identifiers, pending).await
    };
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::info!(error = %tidegate_telemetry::chain(&error), "the account's orders cannot be listed");
            None
        }
        Err(_) => {
            tracing::info!("listing the account's orders takes too long");
            None
        }
    }
}

/// Asks as the account what instant-acme has no method for.
struct Asker {
    account: Account,
    url: String,
    heard: Heard,
}

impl Asker {
    async fn new(client: &AcmeClient, record: &AccountRecord) -> Result<Self, instant_acme::Error> {
        let (Some(url), Some(key)) = (&record.url, record.key_der()) else {
            return Err(instant_acme::Error::Str("the account is not registered"));
        };
        let heard = Heard {
            client: client.clone(),
            last: Arc::default(),
        };
        let account = Account::builder_with_http(Box::new(heard.clone()))
            .from_parts(url.clone(), key, record.directory.clone())
            .await?;
        Ok(Self {
            account,
            url: url.clone(),
            heard,
        })
    }

    async fn search(
        &self,
        identifiers: &[Identifier],
        pending: &Pending,
    ) -> Result<Option<String>, instant_acme::Error> {
        let (_, body) = self.post_as_get(&self.url).await?;
        let Some(list) = serde_json::from_slice::<Listing>(&body)?.orders else {
            tracing::debug!("the authority does not list orders");
            return Ok(None);
        };
        let mut orders = Vec::new();
        let mut next = Some(list);
        for _ in 0..PAGES {
            let Some(url) = next.take() else { break };
            let (headers, body) = self.post_as_get(&url).await?;
            orders.extend(serde_json::from_slice::<Page>(&body)?.orders);
            next = next_page(&headers);
        }
        let wanted: BTreeSet<(String, String)> = identifiers.iter().map(named).collect();
        // The newest stand last where there is any order at all.
        for url in orders.iter().rev().take(ORDERS) {
            if self.is_ours(url, &wanted, pending).await? {
                return Ok(Some(url.clone()));
            }
        }
        Ok(None)
    }

    async fn is_ours(
        &self,
        url: &str,
        wanted: &BTreeSet<(String, String)>,
        pending: &Pending,
    ) -> Result<bool, instant_acme::Error> {
        for _ in 0..PROCESSING {
            let (_, body) = self.post_as_get(url).await?;
            let listed: Listed = serde_json::from_slice(&body)?;
            if !listed.fits(wanted, pending.profile.as_deref()) {
                return Ok(false);
            }
            match (listed.status.as_str(), &listed.certificate) {
                ("pending" | "ready", _) => return Ok(true),
                // Its signing request was sent; whose key that had is seen in the certificate only.
                ("processing", _) => tokio::time::sleep(Duration::from_secs(1)).await,
                ("valid", Some(certificate)) => {
                    let (_, chain) = self.post_as_get(certificate).await?;
                    let chain = String::from_utf8_lossy(&chain);
                    return Ok(issued::inspect(&chain, &pending.key_pem).is_ok());
                }
                _ => return Ok(false),
            }
        }
        Ok(false)
    }

    /// A read in the name of the account (RFC 8555 §6.3). That instant-acme cannot make an order of the
    /// answer does not matter: it was heard.
    async fn post_as_get(&self, url: &str) -> Result<(HeaderMap, Bytes), instant_acme::Error> {
        self.heard.take();
        match self.account.order(url.to_owned()).await {
            Ok(_) | Err(instant_acme::Error::Json(_)) => {}
            Err(error) => return Err(error),
        }
        match self.heard.take() {
            Some(response) if response.status().is_success() => {
                let (parts, body) = response.into_parts();
                Ok((parts.headers, body))
            }
            _ => Err(instant_acme::Error::Str("no such resource")),
        }
    }
}

/// Keeps the last answer.
#[derive(Clone)]
struct Heard {
    client: AcmeClient,
    last: Arc<Mutex<Option<Response<Bytes>>>>,
}

impl Heard {
    fn take(&self) -> Option<Response<Bytes>> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl HttpClient for Heard {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let (client, last) = (self.client.clone(), Arc::clone(&self.last));
        Box::pin(async move {
            let response = client
                .exchange(request)
                .await
                .map_err(|error| instant_acme::Error::Other(Box::new(error)))?;
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(response.clone());
            Ok(BytesResponse::from(response.map(Full::new)))
        })
    }
}

/// The account object, as far as it matters (RFC 8555 §7.1.2).
#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    orders: Option<String>,
}

/// A page of the list (RFC 8555 §7.1.2.1).
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    orders: Vec<String>,
}

/// An order, as far as it matters (RFC 8555 §7.1.3).
#[derive(Deserialize)]
struct Listed {
    status: String,
    #[serde(default)]
    identifiers: Vec<ListedName>,
    #[serde(default)]
    profile: Option<String>,
    #[serde(default)]
    certificate: Option<String>,
}

#[derive(Deserialize)]
struct ListedName {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

impl Listed {
    /// Whether it is for exactly these names, with this profile where one was asked for and is told.
    fn fits(&self, wanted: &BTreeSet<(String, String)>, profile: Option<&str>) -> bool {
        let names: BTreeSet<(String, String)> = self
            .identifiers
            .iter()
            .map(|name| (name.kind.clone(), canonical(&name.value)))
            .collect();
        let same_profile = match (profile, self.profile.as_deref()) {
            (Some(asked), Some(told)) => asked == told,
            _ => true,
        };
        names == *wanted && same_profile
    }
}

fn named(identifier: &Identifier) -> (String, String) {
    match identifier {
        Identifier::Ip(address) => ("ip".to_owned(), address.to_string()),
        Identifier::Dns(name) => ("dns".to_owned(), canonical(name)),
        // Never ordered.
        other => ("other".to_owned(), format!("{other:?}")),
    }
}

/// Addresses have many spellings, names two.
fn canonical(value: &str) -> String {
    match value.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => value.to_ascii_lowercase(),
    }
}

/// The target of `Link: <…>; rel="next"` (RFC 8288 §3).
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(header::LINK).into_iter();
    let mut links = links
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    links.find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters.split(';').any(|parameter| {
            let Some((name, value)) = parameter.split_once('=') else {
                return false;
            };
            name.trim().eq_ignore_ascii_case("rel")
                && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        });
        next.then(|| target.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_other_links() {
        let next = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::LINK, value.parse().unwrap());
            }
            next_page(&headers)
        };
        let found = Some("https://ca.example/orders/2".to_owned());
        let index = r#"<https://ca.example/dir>;rel="index""#;
        let link = r#"<https://ca.example/orders/2>; rel="next""#;
        assert_eq!(next(&[index, link]), found);
        assert_eq!(next(&[&format!("{index}, {link}")]), found);
        assert_eq!(next(&["<https://ca.example/orders/2>;rel=next"]), found);
        assert_eq!(next(&[index]), None);
        assert_eq!(next(&["nonsense", "<unclosed; rel=next"]), None);
        assert_eq!(next(&[]), None);
    }

    #[test]
    fn an_order_fits_by_its_names_and_profile() {
        let listed: Listed = serde_json::from_str(
            r#"{"status": "ready", "profile": "short", "identifiers": [
                {"type": "ip", "value": "2001:DB8:0::1"}, {"type": "dns", "value": "A.example"}]}"#,
        )
        .unwrap();
        let name = |name: &str| Identifier::Dns(name.to_owned());
        let address = Identifier::Ip("2001:db8::1".parse().unwrap());
        let fits = |names: &[Identifier], profile| {
            listed.fits(&names.iter().map(named).collect(), profile)
        };
        let both = [name("a.example"), address];
        assert!(fits(&both, Some("short")));
        assert!(fits(&both, None));
        assert!(!fits(&both, Some("long")));
        assert!(!fits(&[name("a.example")], None));
        assert!(!fits(
            &[both[0].clone(), both[1].clone(), name("b.example")],
            None
        ));
    }
}
