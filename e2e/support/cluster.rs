//! A Kubernetes for stories: started here, or somebody's by `TIDEGATE_E2E_KUBECONFIG`.
//!
//! Ours has a control plane and no nodes: every object can be written and watched, RBAC, admission and
//! garbage collection are real, and no pod runs. What needs pods starts a `Node`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

use super::control_plane::{ControlPlane, Part, Site};
use super::kubectl::{Kubectl, everything};
use super::namespace::Namespace;
use super::program::missing;
use super::{block_on, eventually};

/// Names a kubeconfig file whose cluster is used instead of one of our own.
const GIVEN: &str = "TIDEGATE_E2E_KUBECONFIG";

/// How long a cluster may take to be ready on a busy machine; alone it takes about eight seconds.
const START: Duration = Duration::from_mins(2);

/// A cluster with our definitions.
pub(crate) struct Cluster {
    kubeconfig: PathBuf,
    folder: PathBuf,
    kubectl: Kubectl,
    client: Client,
    /// `None`: somebody's cluster, which is not stopped and started by us.
    plane: Option<ControlPlane>,
}

impl Cluster {
    /// The cluster that all tests share, each in a namespace of its own. `None` where none can be had.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
        static TRIED: AtomicBool = AtomicBool::new(false);
        let start = || {
            // Every test would try again, each with all its patience.
            let tried = TRIED.swap(true, Ordering::Relaxed);
            assert!(
                !tried,
                "no cluster: the first test that asked for it tells why"
            );
            match std::env::var_os(GIVEN) {
                Some(given) => Some(Self::given(Path::new(&given))),
                None => Self::own(),
            }
        };
        SHARED.get_or_init(start).as_ref()
    }

    /// A cluster for one test, whose parts it may stop. `None` where none can be had.
    pub(crate) fn own() -> Option<Self> {
        if Self::is_given() {
            eprintln!("SKIPPED: a story that stops its control plane, because {GIVEN} is set");
            return None;
        }
        if missing(&[everything()]) {
            return None;
        }
        Some(Self::at(Site {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            prefix: Vec::new(),
        }))
    }

    /// A cluster somewhere else than on loopback; `Node` is the one who needs it.
    pub(crate) fn at(site: Site) -> Self {
        let folder = new_folder();
        let plane = ControlPlane::start(site, &folder);
        let kubeconfig = plane.admin_kubeconfig();
        let cluster = Self::connect(kubeconfig, folder, Some(plane));
        cluster.wait_until_ready();
        cluster.plane().start_part(Part::ControllerManager);
        cluster.install_definitions();
        cluster
    }

    /// Whether somebody gave a cluster, which is to be used as it is.
    pub(crate) fn is_given() -> bool {
        std::env::var_os(GIVEN).is_some()
    }

    fn given(kubeconfig: &Path) -> Self {
        let cluster = Self::connect(kubeconfig.to_owned(), new_folder(), None);
        cluster.wait_until_ready();
        cluster.install_definitions();
        cluster
    }

    fn connect(kubeconfig: PathBuf, folder: PathBuf, plane: Option<ControlPlane>) -> Self {
        let kubectl = Kubectl::new(&kubeconfig, &folder);
        let client = client_of(&kubeconfig);
        Self {
            kubeconfig,
            folder,
            kubectl,
            client,
            plane,
        }
    }

    /// A namespace that is deleted when it is dropped.
    #[track_caller]
    pub(crate) fn namespace(&self) -> Namespace {
        Namespace::create(&self.kubectl, &self.client)
    }

    /// An administrator's client.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// An administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// kubectl as an administrator.
    pub(crate) fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// A kubeconfig file with a token of the service account, which may do what RBAC lets it and no more.
    #[track_caller]
    pub(crate) fn kubeconfig_for(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self
            .kubectl
            .run(&["create", "token", account, "-n", namespace]);
        let mut config = serde_json::to_value(read(&self.kubeconfig)).unwrap();
        let current = config["current-context"].as_str().unwrap().to_owned();
        let contexts = config["contexts"].as_array().unwrap();
        let context = contexts.iter().find(|it| it["name"] == *current).unwrap();
        let cluster = context["context"]["cluster"].clone();
        config["users"] = json!([{"name": account, "user": {"token": token.trim()}}]);
        config["contexts"] = json!([{"name": current, "context": {
            "cluster": cluster, "user": account, "namespace": namespace,
        }}]);
        let file = self
            .folder
            .join(format!("{namespace}-{account}.kubeconfig"));
        fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// kubectl as the service account.
    #[track_caller]
    pub(crate) fn kubectl_as(&self, namespace: &str, account: &str) -> Kubectl {
        Kubectl::new(&self.kubeconfig_for(namespace, account), &self.folder)
    }

    /// Kills a part; of a cluster of one's own only.
    #[track_caller]
    pub(crate) fn kill(&self, part: Part) {
        self.plane().kill_part(part);
    }

    /// Starts a part that was killed; [`Self::wait_until_ready`] tells when it answers.
    #[track_caller]
    pub(crate) fn start(&self, part: Part) {
        self.plane().start_part(part);
    }

    /// Stops a part without closing anything: who asks it waits.
    pub(crate) fn pause(&self, part: Part) {
        self.plane().pause_part(part);
    }

    /// Lets a paused part go on.
    pub(crate) fn resume(&self, part: Part) {
        self.plane().resume_part(part);
    }

    /// CPU time that a part took so far; none where the cluster is somebody's.
    pub(crate) fn cpu_time(&self, part: Part) -> Duration {
        let plane = self.plane.as_ref();
        plane.map(|plane| plane.cpu_time(part)).unwrap_or_default()
    }

    /// Waits until the API server answers and says that it is ready.
    #[track_caller]
    pub(crate) fn wait_until_ready(&self) {
        eventually("a ready API server", START, || {
            if let Some(plane) = &self.plane {
                plane.assert_runs();
            }
            self.ready()
        });
    }

    /// Whether the API server says within a second that it is ready.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
        let asked = async {
            tokio::time::timeout(Duration::from_secs(1), self.client.request_text(request)).await
        };
        match block_on(asked) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer within a second".to_owned()),
        }
    }

    /// What service accounts asked of the API server, a line of JSON for each request; of our own only.
    pub(crate) fn audit(&self) -> Option<PathBuf> {
        self.plane.as_ref().map(ControlPlane::audit)
    }

    /// The last lines of what the control plane said, for a failing test.
    pub(crate) fn logs(&self) -> String {
        self.plane
            .as_ref()
            .map(ControlPlane::logs)
            .unwrap_or_default()
    }

    #[track_caller]
    fn install_definitions(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        self.kubectl.run(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            folder.to_str().unwrap(),
        ]);
        self.kubectl.run(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "-l",
            "app.kubernetes.io/name=tidegate",
            "customresourcedefinitions",
        ]);
    }

    /// The servers; panics where the cluster is somebody's.
    #[track_caller]
    pub(crate) fn plane(&self) -> &ControlPlane {
        self.plane.as_ref().expect("a cluster of our own")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.plane = None;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A client with the kubeconfig's current context.
pub(crate) fn client_of(kubeconfig: &Path) -> Client {
    block_on(async {
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(read(kubeconfig), &options)
            .await
            .unwrap();
        Client::try_from(config).unwrap()
    })
}

#[track_caller]
fn read(kubeconfig: &Path) -> Kubeconfig {
    Kubeconfig::read_from(kubeconfig)
        .unwrap_or_else(|error| panic!("read {}: {error}", kubeconfig.display()))
}

/// A folder for one cluster. The shared cluster is never dropped, so what earlier runs left goes now.
pub(crate) fn new_folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e");
    fs::create_dir_all(&parent).unwrap();
    for entry in fs::read_dir(&parent).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = parent.join(format!("{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}
