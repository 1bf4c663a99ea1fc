"""Writes an OCI image layout with one layer of random bytes.

  oci_image.py FOLDER BYTES
"""

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile

folder, size = sys.argv[1], int(sys.argv[2])
os.makedirs(f"{folder}/blobs/sha256")


def blob(data, media_type):
    digest = hashlib.sha256(data).hexdigest()
    with open(f"{folder}/blobs/sha256/{digest}", "wb") as file:
        file.write(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


raw = io.BytesIO()
with tarfile.open(fileobj=raw, mode="w") as tar:
    entry = tarfile.TarInfo("random")
    entry.size = size
    tar.addfile(entry, io.BytesIO(os.urandom(size)))
diff = hashlib.sha256(raw.getvalue()).hexdigest()
layer = blob(gzip.compress(raw.getvalue(), 1), "application/vnd.oci.image.layer.v1.tar+gzip")
config = blob(
    json.dumps({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff}"]},
    }).encode(),
    "application/vnd.oci.image.config.v1+json",
)
manifest = blob(
    json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    }).encode(),
    "application/vnd.oci.image.manifest.v1+json",
)
manifest["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
with open(f"{folder}/index.json", "w") as file:
    json.dump({"schemaVersion": 2, "manifests": [manifest]}, file)
with open(f"{folder}/oci-layout", "w") as file:
    json.dump({"imageLayoutVersion": "1.0.0"}, file)
