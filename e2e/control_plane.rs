//! The test bed itself: roles bind, what is stopped comes back with what it knew.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

use crate::support::{Cluster, Part, block_on, cluster, eventually};

const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_service_account_may_do_what_its_role_says_and_no_more() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let namespace = cluster.namespace();
    cluster.kubectl().apply(
        namespace.name(),
        "\
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules:
- {apiGroups: [edge.tidegate.dev], resources: [tlsroutes], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader}]
",
    );
    let reader = cluster.kubectl_as(namespace.name(), "reader");
    reader.run(&["get", "tlsroutes"]);
    let (allowed, said) = reader.attempt(&["get", "secrets"]);
    assert!(!allowed && said.contains("Forbidden"), "{said}");
    let (allowed, said) = reader.attempt(&["get", "tlsroutes", "-n", "default"]);
    assert!(!allowed && said.contains("Forbidden"), "{said}");
}

/// A story that stops servers has a cluster of its own.
#[test]
fn what_was_written_is_there_after_the_servers_were_killed() {
    let Some(cluster) = Cluster::own() else {
        return;
    };
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some("kept".to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    };
    block_on(maps.create(&PostParams::default(), &map)).unwrap();

    let not_ready = |what| {
        eventually(what, PATIENCE, || match cluster.ready() {
            Ok(()) => Err("still ready".to_owned()),
            Err(_) => Ok(()),
        });
    };
    cluster.pause(Part::ApiServer);
    // The kernel stops threads one by one: the first question may still be answered.
    not_ready("an API server that does not answer");
    cluster.resume(Part::ApiServer);
    cluster.wait_until_ready();

    cluster.kill(Part::Etcd);
    not_ready("an API server that misses etcd");
    cluster.start(Part::Etcd);
    cluster.wait_until_ready();
    assert!(block_on(maps.get("kept")).is_ok());

    cluster.kill(Part::ApiServer);
    assert!(cluster.ready().is_err());
    cluster.start(Part::ApiServer);
    cluster.wait_until_ready();
    assert!(block_on(maps.get("kept")).is_ok());
    // A client that is made now sees the same servers: their certificates were kept too.
    let client = cluster::client_of(cluster.kubeconfig());
    block_on(client.apiserver_version()).unwrap();
}
