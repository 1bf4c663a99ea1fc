//! A route's life: applied, served, changed, deleted; what it lacks is said and mends itself.

use kube::Api;
use tidegate::api::AcmeIssuer;

use crate::support::edge::PATIENCE;
use crate::support::operator::{anywhere, route_to, route_with, service};
use crate::support::{Cluster, Deployment, Origin, block_on, eventually};

#[test]
fn eight_lines_are_served_changed_and_deleted() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let edge = Deployment::new(cluster, space);
    let one = edge.replica("one").start();
    let blue = Origin::text_at(anywhere(), "blue");
    let green = Origin::text_at(anywhere(), "green");
    kubectl.apply(space, &service("blue", &[blue.address()]));
    kubectl.apply(space, &service("green", &[green.address()]));

    let route = route_to("blog", "blog.example.com", "blue");
    assert_eq!(route.lines().count(), 8);
    kubectl.apply(space, &route);
    let wait = |what: &str| {
        let args = ["wait", "-n", space, what, "--timeout=30s", "tlsroute/blog"];
        kubectl.run(&args);
    };
    wait("--for=condition=Ready");
    let client = one.client();
    // Ready means served: no second try.
    assert_eq!(client.get("blog.example.com", "/").text(), "blue");
    let listed = kubectl.run(&["get", "edge", "-n", space, "--no-headers"]);
    let row = listed.lines().find(|line| line.contains("/blog"));
    let cells: Vec<&str> = row.unwrap().split_whitespace().collect();
    let expected = [
        "tlsroute.edge.tidegate.dev/blog",
        "blog.example.com",
        "True",
        "Ready",
    ];
    assert_eq!(cells[..4], expected, "{listed}");
    let wide = kubectl.run(&["get", "tlsr", "-n", space, "-o", "wide"]);
    assert!(wide.contains("CLASS") && !wide.contains('['), "{wide}");
    eprintln!("{wide}");
    let told = kubectl.run(&["events", "-n", space, "--for", "tlsroute/blog"]);
    assert!(told.contains("Normal") && told.contains("Ready"), "{told}");

    kubectl.apply(space, &route_to("blog", "blog.example.com", "green"));
    one.wait_for_text(&client, "blog.example.com", "green");
    // Of the new generation, whose status may be a moment behind.
    eventually("a status of the new generation", PATIENCE, || {
        let route = edge.route("blog").ok_or("no route")?;
        let seen = route.status.and_then(|status| status.observed_generation);
        (seen == route.metadata.generation && seen == Some(2))
            .then_some(())
            .ok_or_else(|| format!("{seen:?}"))
    });
    wait("--for=condition=Ready");

    // Endpoints come and go without a word about the route.
    let blue_seen = blue.requests();
    let moved = service("green", &[blue.address()]);
    kubectl.apply(space, &moved);
    one.wait_for_text(&client, "blog.example.com", "blue");
    assert!(blue.requests() > blue_seen);

    kubectl.run(&["delete", "-n", space, "tlsroute/blog"]);
    eventually("a host that is not known", PATIENCE, || {
        match client.try_get("blog.example.com", "/") {
            // The handshake is broken off without a word.
            Err(error) if error.contains("handshake") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(!one.log().contains("\"error\""), "{}", one.log());
}

/// Another edge's objects are not read, let alone written.
#[test]
fn a_route_of_another_class_is_left_alone() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let edge = Deployment::new(cluster, space).args(&["--class", "inner"]);
    let one = edge.replica("one").start();
    let origin = Origin::text_at(anywhere(), "inner");
    kubectl.apply(space, &service("web", &[origin.address()]));
    let of = |name: &str, class: &str| {
        let host = format!("{name}.example.com");
        format!("{}{class}", route_to(name, &host, "web"))
    };
    kubectl.apply(space, &of("outer", "  className: outer\n"));
    kubectl.apply(space, &of("none", ""));
    kubectl.apply(space, &of("inner", "  className: inner\n"));
    edge.wait_for("inner", "Ready", "True", "Ready");
    let client = one.client();
    assert_eq!(client.get("inner.example.com", "/").text(), "inner");
    // Two edges that wrote about one issuer would write for ever.
    let issuers: Api<AcmeIssuer> = Api::all(cluster.client());
    for class in ["outer", "inner"] {
        let issuer = format!(
            "apiVersion: edge.tidegate.dev/v1alpha1\nkind: AcmeIssuer\nmetadata: {{name: {space}-{class}}}\n\
             spec: {{className: {class}, directory: \"https://127.0.0.1:1/dir\", termsOfServiceAgreed: true}}\n"
        );
        kubectl.apply(space, &issuer);
    }
    let observed = |class: &str| {
        let issuer = block_on(issuers.get(&format!("{space}-{class}"))).unwrap();
        issuer.status.and_then(|status| status.observed_generation)
    };
    eventually("a status of the own issuer", PATIENCE, || {
        let observed = observed("inner");
        (observed == Some(1))
            .then_some(())
            .ok_or_else(|| format!("{observed:?}"))
    });
    assert_eq!(observed("outer"), Some(-1));
    eventually("an Event of the own issuer", PATIENCE, || {
        let described = kubectl.run(&["describe", "acmeissuer", &format!("{space}-inner")]);
        let told = described.split("Events:").nth(1).unwrap_or_default();
        let is_told = told.contains("Pending") && told.contains("tidegate");
        is_told.then_some(()).ok_or(described)
    });
    // The other edge's cannot be used, and whose it is is said.
    let tls = format!("issuerRef: {{name: {space}-outer}}");
    let asking = route_with("asking", "asking.example.com", "web", &tls);
    kubectl.apply(space, &format!("{asking}  className: inner\n"));
    let said = edge.wait_for("asking", "ResolvedRefs", "False", "IssuerNotFound");
    assert!(said.contains("has className outer"), "{said}");
    for class in ["outer", "inner"] {
        kubectl.run(&["delete", "acmeissuer", &format!("{space}-{class}")]);
    }
    for name in ["outer", "none"] {
        let error = client
            .try_get(&format!("{name}.example.com"), "/")
            .unwrap_err();
        assert!(error.contains("handshake"), "{error}");
        let status = edge.route(name).unwrap().status.unwrap_or_default();
        // As the API server writes it into a new object.
        assert!(
            status.observed_generation == Some(-1) && status.conditions.is_empty(),
            "{status:?}"
        );
    }
}

#[test]
fn what_a_route_lacks_is_said_and_mended_by_making_it() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    let (space, kubectl) = (namespace.name(), cluster.kubectl());
    let edge = Deployment::new(cluster, space);
    let one = edge.replica("one").start();
    let origin = Origin::text_at(anywhere(), "here");
    let host = "lacking.example.com";
    kubectl.apply(space, &route_to("lacking", host, "web"));

    // No Service.
    let said = edge.wait_for("lacking", "ResolvedRefs", "False", "BackendNotFound");
    assert!(said.contains("web"), "{said}");
    edge.wait_for("lacking", "BackendsReady", "False", "BackendNotFound");
    edge.wait_for("lacking", "Ready", "False", "BackendNotFound");
    let told = kubectl.run(&["events", "-n", space, "--for", "tlsroute/lacking"]);
    assert!(
        told.contains("Warning") && told.contains("BackendNotFound"),
        "{told}"
    );

    // A Service with another port.
    let other =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 8080}]}\n";
    kubectl.apply(space, other);
    eventually("a condition that names the port", PATIENCE, || {
        match edge.condition("lacking", "ResolvedRefs") {
            Some((status, reason, message))
                if status == "False" && reason == "BackendNotFound" && message.contains("8080") =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    });

    // The port, and nobody behind it: accepted, and answered with 503.
    kubectl.apply(space, &service("web", &[]));
    edge.wait_for("lacking", "BackendsReady", "False", "NoReadyEndpoints");
    edge.wait_for("lacking", "Ready", "True", "Ready");
    let client = one.client();
    assert_eq!(client.get(host, "/").status, 503);

    kubectl.apply(space, &service("web", &[origin.address()]));
    edge.wait_for("lacking", "BackendsReady", "True", "BackendsReady");
    one.wait_for_text(&client, host, "here");

    // A certificate that does not exist. What was served before stays.
    kubectl.apply(
        space,
        &route_with("lacking", host, "web", "secretName: own"),
    );
    let said = edge.wait_for("lacking", "ResolvedRefs", "False", "SecretNotFound");
    assert!(said.contains("own"), "{said}");
    one.wait_for_text(&client, host, "here");
    let pair = super::secrets::Pair::new(&[host]);
    kubectl.apply(space, &pair.secret("own"));
    edge.wait_for("lacking", "Ready", "True", "Ready");
    let client = one.client_with(&pair.certificate);
    assert_eq!(client.get(host, "/").text(), "here");
}
