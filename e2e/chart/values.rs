//! What values make of the chart, and values that are refused.

use serde_json::{Value, json};

use crate::support::chart::{helm, objects, one, render, try_render};

/// Where to look, and what is to be there; `Null`: nothing.
type Expected = (&'static str, &'static str, Value);

const ARGS: &str = "/spec/template/spec/containers/0/args";
const POD: &str = "/spec/template/spec/securityContext";
const CONTAINER: &str = "/spec/template/spec/containers/0";

#[test]
fn values_are_rendered() {
    let Some(helm) = helm() else {
        return;
    };
    let table: &[(&[&str], &[Expected])] = &[
        (
            &[],
            &[
                ("Deployment", "/spec/replicas", json!(2)),
                (
                    "Deployment",
                    "/spec/strategy/rollingUpdate",
                    json!({"maxSurge": 1, "maxUnavailable": 0}),
                ),
                (
                    "Deployment",
                    "/spec/template/spec/terminationGracePeriodSeconds",
                    json!(45),
                ),
                (
                    "Deployment",
                    "/spec/template/spec/containers/0/image",
                    json!("ghcr.io/tidegate/tidegate:0.0.0"),
                ),
                ("Deployment", "/spec/template/spec/hostNetwork", Value::Null),
                (
                    "Deployment",
                    "/spec/template/spec/containers/0/ports/0",
                    json!({"name": "http", "containerPort": 8080}),
                ),
                (
                    "Deployment",
                    "/spec/template/spec/containers/0/securityContext",
                    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}),
                ),
                (
                    "Deployment",
                    "/spec/template/spec/volumes/0/emptyDir/medium",
                    json!("Memory"),
                ),
                ("Service", "/spec/type", json!("LoadBalancer")),
                ("Service", "/spec/externalTrafficPolicy", json!("Local")),
                ("PodDisruptionBudget", "/spec/maxUnavailable", json!(1)),
                (
                    "CustomResourceDefinition",
                    "/metadata/annotations/helm.sh~1resource-policy",
                    json!("keep"),
                ),
                ("DaemonSet", "", Value::Null),
                ("NetworkPolicy", "", Value::Null),
                ("ConfigMap", "", Value::Null),
                ("PrometheusRule", "", Value::Null),
            ],
        ),
        (
            &[
                "replicas=1",
                "crds.keep=false",
                "image.digest=sha256:0123456789012345678901234567890123456789012345678901234567890123",
            ],
            &[
                ("PodDisruptionBudget", "", Value::Null),
                (
                    "CustomResourceDefinition",
                    "/metadata/annotations",
                    Value::Null,
                ),
                (
                    "Deployment",
                    "/spec/template/spec/containers/0/image",
                    json!(
                        "ghcr.io/tidegate/tidegate@sha256:0123456789012345678901234567890123456789012345678901234567890123"
                    ),
                ),
            ],
        ),
        (
            &[
                "crds.enabled=false",
                "rbac.create=false",
                "rbac.aggregate=false",
                "policy.limitSecretWrites=false",
                "policy.limitServiceWrites=false",
                "policy.crossObject=false",
                "service.enabled=false",
            ],
            &[
                ("CustomResourceDefinition", "", Value::Null),
                ("Role", "", Value::Null),
                ("ClusterRole", "", Value::Null),
                ("ValidatingAdmissionPolicy", "", Value::Null),
                // The replicas find each other all the same.
                ("Service", "/spec/clusterIP", json!("None")),
            ],
        ),
        (
            &[
                "kind=DaemonSet",
                "hostPorts.enabled=true",
                "service.enabled=false",
            ],
            &[
                ("Deployment", "", Value::Null),
                ("DaemonSet", "/spec/replicas", Value::Null),
                (
                    "DaemonSet",
                    "/spec/updateStrategy/rollingUpdate",
                    json!({"maxSurge": 0, "maxUnavailable": 1}),
                ),
                (
                    "DaemonSet",
                    "/spec/template/spec/containers/0/ports/1",
                    json!({"name": "https", "containerPort": 8443, "hostPort": 443}),
                ),
                (
                    "DaemonSet",
                    "/spec/template/spec/securityContext/runAsUser",
                    json!(65532),
                ),
                (
                    "DaemonSet",
                    "/spec/template/spec/topologySpreadConstraints",
                    Value::Null,
                ),
            ],
        ),
        (
            &[
                "kind=DaemonSet",
                "hostNetwork.enabled=true",
                "service.enabled=false",
            ],
            &[
                ("DaemonSet", "/spec/template/spec/hostNetwork", json!(true)),
                // The old pod hands its sockets to the new one beside it.
                (
                    "DaemonSet",
                    "/spec/updateStrategy/rollingUpdate",
                    json!({"maxSurge": 1, "maxUnavailable": 0}),
                ),
                (
                    "DaemonSet",
                    "/spec/template/spec/containers/0/startupProbe/exec/command",
                    json!(["/tidegate", "ready", "--state-dir=/var/lib/tidegate/state"]),
                ),
                (
                    "DaemonSet",
                    "/spec/template/spec/containers/0/startupProbe/httpGet",
                    Value::Null,
                ),
                (
                    "DaemonSet",
                    "/spec/template/spec/containers/0/readinessProbe/httpGet/path",
                    json!("/readyz"),
                ),
                // A declared port would be claimed on the node.
                (
                    "DaemonSet",
                    "/spec/template/spec/containers/0/ports",
                    Value::Null,
                ),
                (
                    "DaemonSet",
                    "/spec/template/spec/securityContext/runAsUser",
                    json!(0),
                ),
                (
                    "DaemonSet",
                    "/spec/template/spec/containers/0/securityContext/capabilities",
                    json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
                ),
                ("Service", "/spec/ports/0/targetPort", json!(80)),
            ],
        ),
        (
            &[
                "hostNetwork.enabled=true",
                "hostNetwork.bindPrivilegedPorts=false",
            ],
            &[
                (
                    "Deployment",
                    "/spec/template/spec/securityContext/runAsUser",
                    json!(65532),
                ),
                (
                    "Deployment",
                    "/spec/strategy/rollingUpdate",
                    json!({"maxSurge": 1, "maxUnavailable": 0}),
                ),
            ],
        ),
        (
            &[
                "hostNetwork.enabled=true",
                "hostNetwork.bindPrivilegedPorts=false",
                "trackers.transparent=true",
            ],
            &[
                (
                    "Deployment",
                    "/spec/template/spec/securityContext/runAsUser",
                    json!(0),
                ),
                (
                    "Deployment",
                    "/spec/template/spec/containers/0/securityContext/capabilities",
                    json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "NET_ADMIN"]}),
                ),
            ],
        ),
        (
            &["listeners.http.extraPorts={7070}"],
            &[
                (
                    "Service",
                    "/spec/ports/2",
                    json!({"name": "http-7070", "port": 7070, "targetPort": 7070}),
                ),
                (
                    "Deployment",
                    "/spec/template/spec/containers/0/ports/2",
                    json!({"name": "http-7070", "containerPort": 7070}),
                ),
            ],
        ),
        (
            &["tunnel.ports={25565/tcp,20000-20001/udp}"],
            &[
                (
                    "Service",
                    "/spec/ports/2",
                    json!({"name": "tcp-25565", "port": 25565, "targetPort": 25565, "protocol": "TCP"}),
                ),
                (
                    "Service",
                    "/spec/ports/4",
                    json!({"name": "udp-20001", "port": 20001, "targetPort": 20001, "protocol": "UDP"}),
                ),
                (
                    "Deployment",
                    "/spec/template/spec/containers/0/ports/2",
                    json!({"name": "tcp-25565", "containerPort": 25565, "protocol": "TCP"}),
                ),
            ],
        ),
        (
            &["hostNetwork.enabled=true", "updateStrategy.type=Recreate"],
            &[("Deployment", "/spec/strategy", json!({"type": "Recreate"}))],
        ),
        (
            &["drainSeconds=120", "preStopSeconds=0"],
            &[
                (
                    "Deployment",
                    "/spec/template/spec/terminationGracePeriodSeconds",
                    json!(130),
                ),
                (
                    "Deployment",
                    "/spec/template/spec/containers/0/lifecycle",
                    Value::Null,
                ),
            ],
        ),
        (
            &["watchNamespaces={a,b}"],
            &[
                (
                    "ClusterRole",
                    "/metadata/name",
                    json!("there:edge-tidegate:issuers"),
                ),
                ("ClusterRole", "/rules/0/resources", json!(["acmeissuers"])),
            ],
        ),
        (
            &["networkPolicy.enabled=true"],
            &[
                ("NetworkPolicy", "/spec/policyTypes", json!(["Ingress"])),
                ("NetworkPolicy", "/spec/ingress/0/from", Value::Null),
                (
                    "NetworkPolicy",
                    "/spec/ingress/1/ports",
                    json!([{"port": 9180, "protocol": "TCP"}]),
                ),
                (
                    "NetworkPolicy",
                    "/spec/ingress/2",
                    json!({
                        "ports": [{"port": 8444, "protocol": "TCP"}],
                        "from": [{"podSelector": {"matchLabels": {
                            "app.kubernetes.io/name": "tidegate",
                            "app.kubernetes.io/instance": "edge",
                        }}}],
                    }),
                ),
                ("NetworkPolicy", "/spec/egress", Value::Null),
            ],
        ),
        (
            &[
                "networkPolicy.enabled=true",
                "networkPolicy.egress[0].ports[0].port=443",
                "containerPorts.replicas=9444",
            ],
            &[
                ("NetworkPolicy", "/spec/egress/0/ports/0/port", json!(443)),
                (
                    "NetworkPolicy",
                    "/spec/egress/1/ports",
                    json!([{"port": 9444, "protocol": "TCP"}]),
                ),
            ],
        ),
        (
            &["service.enabled=false", "kind=DaemonSet"],
            &[
                (
                    "Service",
                    "/spec/ports/3",
                    json!({"name": "replicas", "port": 8444, "targetPort": 8444}),
                ),
                ("Service", "/spec/publishNotReadyAddresses", json!(true)),
                (
                    "DaemonSet",
                    "/spec/template/spec/containers/0/ports/3",
                    json!({"name": "replicas", "containerPort": 8444}),
                ),
            ],
        ),
        (
            &[
                "service.enabled=false",
                "agents.forward=false",
                "networkPolicy.enabled=true",
            ],
            &[
                ("Service", "/spec/ports/3", Value::Null),
                (
                    "Deployment",
                    "/spec/template/spec/containers/0/ports/3",
                    Value::Null,
                ),
                ("NetworkPolicy", "/spec/ingress/2", Value::Null),
            ],
        ),
        // One replica in the node's network takes no further port of the node.
        (
            &[
                "service.enabled=false",
                "hostNetwork.enabled=true",
                "replicas=1",
            ],
            &[("Service", "/spec/ports/3", Value::Null)],
        ),
        (
            &[
                "podMonitor.enabled=true",
                "prometheusRule.enabled=true",
                "dashboard.enabled=true",
            ],
            &[
                (
                    "PodMonitor",
                    "/spec/podMetricsEndpoints/0/relabelings/0",
                    json!({"targetLabel": "job", "replacement": "tidegate"}),
                ),
                (
                    "PrometheusRule",
                    "/spec/groups/0/rules/0/alert",
                    json!("TidegateDown"),
                ),
                // Grafana's and not Helm's.
                (
                    "PrometheusRule",
                    "/spec/groups/0/rules/0/annotations/summary",
                    json!("The edge {{ $labels.instance }} does not answer"),
                ),
                (
                    "ConfigMap",
                    "/metadata/labels/grafana_dashboard",
                    json!("1"),
                ),
            ],
        ),
    ];
    for (set, expected) in table {
        let objects = render(&helm, "edge", "there", set);
        for (kind, pointer, wanted) in *expected {
            let found = (objects.iter())
                .find(|object| object["kind"] == *kind)
                .and_then(|object| object.pointer(pointer))
                .unwrap_or(&Value::Null);
            assert_eq!(found, wanted, "{set:?}: {kind}{pointer}");
        }
    }
}

#[test]
fn options_of_the_program_follow_the_values() {
    let Some(helm) = helm() else {
        return;
    };
    let table: &[(&[&str], &[&str], &[&str])] = &[
        (
            &[],
            &[
                "operator",
                "--http=8080",
                "--https=8443",
                "--admin=9180",
                "--public-https-port=443",
                "--replicas-service=edge-tidegate-replicas",
                "--replicas-listen=8444",
                "--lease=edge-tidegate",
                "--drain-timeout=30s",
                "--access-log=on",
            ],
            &[
                "--default-issuer-file",
                "--watch-namespace",
                "--handover",
                "--class",
                "--proxy-protocol",
                "--mask",
            ],
        ),
        (
            &["hostNetwork.enabled=true", "hostPorts.https=8445"],
            &[
                "--http=80",
                "--https=8445",
                "--public-https-port=8445",
                "--replicas-listen=8444",
                "--handover",
            ],
            &[],
        ),
        (
            &["hostPorts.enabled=true", "hostPorts.https=444"],
            &["--https=8443", "--public-https-port=444"],
            &["--handover"],
        ),
        (
            &["service.ports.https=9443"],
            &["--public-https-port=9443"],
            &[],
        ),
        (
            &["listeners.http.extraPorts={7070,7071}"],
            &["--http=8080,7070,7071", "--https=8443"],
            &["--tracker-services", "--tunnel-ports"],
        ),
        (
            &["tunnel.ports={25565/tcp,51820/udp,20000-20001}"],
            &["--tunnel-ports=25565/tcp,51820/udp,20000-20001"],
            &[],
        ),
        (
            &[
                "hostNetwork.enabled=true",
                "service.enabled=false",
                "listeners.addresses={203.0.113.7,2001:db8::7}",
                "listeners.http.extraPorts={7070}",
                "trackers.manageServices=false",
            ],
            &[
                "--http=203.0.113.7:80,[2001:db8::7]:80,203.0.113.7:7070,[2001:db8::7]:7070",
                "--https=203.0.113.7:443,[2001:db8::7]:443",
                "--tracker-services=off",
            ],
            // At the addresses of its pods such an edge does not answer.
            &["--replicas-service", "--replicas-listen"],
        ),
        (
            &["agents.forward=false"],
            &["--replicas-service=edge-tidegate-replicas"],
            &["--replicas-listen"],
        ),
        (
            &["watchNamespaces={a,b}", "className=inner"],
            &["--watch-namespace=a,b", "--class=inner"],
            &[],
        ),
        (
            &[
                "proxyProtocol=required",
                "trustedProxies={10.0.0.0/8,fd00::/8}",
                "publicAddresses={192.0.2.1}",
            ],
            &[
                "--proxy-protocol=required",
                "--trusted-proxies=10.0.0.0/8,fd00::/8",
                "--public-address=192.0.2.1",
            ],
            &[],
        ),
        (
            &[
                "defaultIssuer.enabled=true",
                "defaultIssuer.termsOfServiceAgreed=true",
            ],
            &["--default-issuer-file=/etc/tidegate/issuer.yaml"],
            &[],
        ),
        (
            &[
                "log.access=false",
                "log.maskClientIP=true",
                "extraArgs={--max-connections=5}",
            ],
            &[
                "--access-log=off",
                "--mask-client-ip",
                "--max-connections=5",
            ],
            &[],
        ),
    ];
    for (set, wanted, unwanted) in table {
        let objects = render(&helm, "edge", "there", set);
        let args = one(&objects, "Deployment").pointer(ARGS).unwrap();
        let args: Vec<&str> = (args.as_array().unwrap().iter())
            .map(|it| it.as_str().unwrap())
            .collect();
        for wanted in *wanted {
            assert!(args.contains(wanted), "{set:?}: {wanted} not in {args:?}");
        }
        for unwanted in *unwanted {
            let found = args.iter().any(|it| it.starts_with(unwanted));
            assert!(!found, "{set:?}: {unwanted} in {args:?}");
        }
    }
}

/// Whoever gives their own contexts gets exactly those.
#[test]
fn security_contexts_are_replaced_whole() {
    let Some(helm) = helm() else {
        return;
    };
    let set = [
        "podSecurityContext.runAsUser=1000",
        "securityContext.privileged=true",
    ];
    let objects = render(&helm, "edge", "there", &set);
    let deployment = one(&objects, "Deployment");
    assert_eq!(deployment.pointer(POD), Some(&json!({"runAsUser": 1000})));
    let container = deployment.pointer(CONTAINER).unwrap();
    assert_eq!(container["securityContext"], json!({"privileged": true}));
}

/// Eight lines of a route are enough when the values name an issuer.
#[test]
fn the_default_issuer_is_an_acme_issuer() {
    let Some(helm) = helm() else {
        return;
    };
    let set = [
        "defaultIssuer.enabled=true",
        "defaultIssuer.termsOfServiceAgreed=true",
        "defaultIssuer.email=admin@example.com",
        "defaultIssuer.spec.profile=shortlived",
    ];
    let rendered = render(&helm, "edge", "there", &set);
    let map = one(&rendered, "ConfigMap");
    let issuers = objects(map["data"]["issuer.yaml"].as_str().unwrap());
    assert_eq!(
        issuers,
        [json!({
            "apiVersion": "edge.tidegate.dev/v1alpha1",
            "kind": "AcmeIssuer",
            "metadata": {"name": "default"},
            "spec": {
                "default": true,
                "directory": "https://acme-v02.api.letsencrypt.org/directory",
                "termsOfServiceAgreed": true,
                "contact": ["mailto:admin@example.com"],
                "profile": "shortlived",
            },
        })]
    );
    // Another issuer is another pod: the program reads the file when it starts.
    let pod = |objects: &[Value]| {
        let annotations = "/spec/template/metadata/annotations";
        one(objects, "Deployment").pointer(annotations).cloned()
    };
    let mut other = set.to_vec();
    other.push("defaultIssuer.spec.keyType=P384");
    assert_ne!(pod(&rendered), pod(&render(&helm, "edge", "there", &other)));
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let Some(helm) = helm() else {
        return;
    };
    for (set, said) in [
        (
            &["replica=3"][..],
            "additional properties 'replica' not allowed",
        ),
        (
            &["service.tpye=NodePort"],
            "additional properties 'tpye' not allowed",
        ),
        (&["kind=StatefulSet"], "/kind"),
        (&["replicas=two"], "/replicas"),
        (&["service.type=ExternalName"], "/service/type"),
        (
            &["service.externalTrafficPolicy=local"],
            "/service/externalTrafficPolicy",
        ),
        (&["containerPorts.https=443"], "/containerPorts/https"),
        (
            &["listeners.http.extraPorts={80}"],
            "/listeners/http/extraPorts/0",
        ),
        (&["tunnel.ports={80/sctp}"], "/tunnel/ports/0"),
        (
            &["listeners.addresses={203.0.113.7}"],
            "they need hostNetwork.enabled",
        ),
        (&["trackers.transparent=true"], "needs hostNetwork.enabled"),
        (&["service.ports.https=70000"], "/service/ports/https"),
        (&["watchNamespaces={Blog}"], "/watchNamespaces/0"),
        (&["watchNamespaces={a,a}"], "/watchNamespaces"),
        (&["image.digest=sha256:0"], "/image/digest"),
        (&["trustedProxies={router}"], "/trustedProxies/0"),
        // Nobody would get in.
        (&["proxyProtocol=required"], "/trustedProxies"),
        (
            &["defaultIssuer.enabled=true"],
            "/defaultIssuer/termsOfServiceAgreed",
        ),
        (
            &["defaultIssuer.directory=http://ca.example"],
            "/defaultIssuer/directory",
        ),
        (&["defaultIssuer.email=admin"], "/defaultIssuer/email"),
        (&["extraArgs={operator}"], "/extraArgs/0"),
        (
            &["podMonitor.enabled=true", "hostNetwork.enabled=true"],
            "serviceMonitor.enabled",
        ),
        (
            &["hostNetwork.enabled=true", "hostPorts.enabled=true"],
            "exclude each other",
        ),
        (
            &["serviceAccount.create=false"],
            "serviceAccount.name is needed",
        ),
    ] {
        let error = try_render(&helm, "edge", "there", set).map(|_| ());
        let error = error.expect_err(&format!("{set:?} was rendered"));
        assert!(error.contains(said), "{set:?}: {error}");
    }
}

/// `helm test` asks where the values lead, with the image that runs anyway.
#[test]
fn the_test_pod_follows_the_values() {
    let Some(helm) = helm() else {
        return;
    };
    let replicas = [
        "http://edge-tidegate-replicas:9180/readyz",
        "http://edge-tidegate-replicas:8080/",
        "tcp://edge-tidegate-replicas:8443",
    ];
    let service = ["http://edge-tidegate:80/", "tcp://edge-tidegate:443"];
    let table: &[(&[&str], &str, &[&str])] = &[
        (
            &[],
            "ghcr.io/tidegate/tidegate:0.0.0",
            &[replicas, [service[0], service[1], ""]].concat(),
        ),
        (
            &[
                "service.enabled=false",
                "image.tag=v1",
                "containerPorts.http=1080",
            ],
            "ghcr.io/tidegate/tidegate:v1",
            &[
                replicas[0],
                "http://edge-tidegate-replicas:1080/",
                replicas[2],
            ],
        ),
        (
            // It has no such header to send.
            &[
                "proxyProtocol=required",
                "trustedProxies={10.0.0.0/8}",
                "service.enabled=false",
            ],
            "ghcr.io/tidegate/tidegate:0.0.0",
            &[
                replicas[0],
                "tcp://edge-tidegate-replicas:8080/",
                replicas[2],
            ],
        ),
    ];
    for (set, image, asked) in table {
        let objects = render(&helm, "edge", "there", set);
        let container = &one(&objects, "Pod")["spec"]["containers"][0];
        assert_eq!(container["image"], *image, "{set:?}");
        let mut wanted = vec!["probe", "--timeout=60s"];
        wanted.extend(asked.iter().filter(|it| !it.is_empty()));
        assert_eq!(container["args"], json!(wanted), "{set:?}");
    }
}
