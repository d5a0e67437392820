"""The field names of Fluid's resources (`data.fluid.io/v1alpha1`), so that a misspelt one is told from one that has no
meaning here. Names only, as of Fluid 1.0's resource definitions; None stands for "anything below".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]
"""Field name to its own fields, or None. Lists are looked through."""


def _names(text: str, **nested: Fields | None) -> dict[str, Any]:
    return {**dict.fromkeys(text.split()), **nested}


METADATA = _names(
    "name namespace labels annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers"
    " generateName generation managedFields ownerReferences resourceVersion selfLink uid"
)

_SECRET_OPTION = _names("name", valueFrom=_names("", secretKeyRef=_names("name key")))
_USER = _names("uid gid user group")
_IMAGE = _names("image imageTag imagePullPolicy")
_CLEAN_CACHE = _names("gracePeriodSeconds maxRetryAttempts")
_MANAGEMENT = _names("", cleanCachePolicy=_CLEAN_CACHE, metadataSyncPolicy=_names("autoSync"))
_TIERS = _names("", levels=_names("mediumtype path quota quotaList high low volumeType volumeSource"))

DATASET = _names(
    "accessModes nodeAffinity placement sharedOptions tolerations",
    mounts=_names("mountPoint name path readOnly shared options", encryptOptions=_SECRET_OPTION),
    owner=_USER,
    sharedEncryptOptions=_SECRET_OPTION,
    runtimes=_names("category masterReplicas name namespace type"),
    dataRestoreLocation=_names("nodeName path"),
)

DATALOAD = _names(
    "affinity loadMetadata nodeSelector options podMetadata policy resources schedule schedulerName tolerations"
    " ttlSecondsAfterFinished",
    dataset=_names("name namespace"),
    target=_names("path replicas"),
    runAfter=_names("affinityStrategy apiVersion kind name namespace"),
)

_COMPONENT = "env nodeSelector podMetadata ports replicas resources volumeMounts"
_ALLUXIO_PART = _names(_COMPONENT + " enabled imagePullSecrets jvmOptions networkMode properties")
_ALLUXIO_FUSE = _names(
    "args cleanPolicy env image imagePullPolicy imagePullSecrets imageTag jvmOptions networkMode nodeSelector"
    " podMetadata properties resources volumeMounts"
)
_ALLUXIO = _names(
    "data disablePrometheus hadoopConfig imagePullSecrets jvmOptions podMetadata properties replicas volumes",
    apiGateway=_ALLUXIO_PART,
    jobMaster=_ALLUXIO_PART,
    jobWorker=_ALLUXIO_PART,
    master=_ALLUXIO_PART,
    worker=_ALLUXIO_PART,
    fuse=_ALLUXIO_FUSE,
    initUsers=_names("env image imagePullPolicy imageTag resources"),
    management=_MANAGEMENT,
    runAs=_USER,
    tieredstore=_TIERS,
)
_JINDO_PART = _names(_COMPONENT + " disabled imagePullSecrets labels properties tolerations")
_JINDO = _names(
    "hadoopConfig imagePullSecrets labels logConfig networkmode podMetadata properties replicas secret user volumes",
    cleanCachePolicy=_CLEAN_CACHE,
    fuse=_names(
        "args cleanPolicy disabled env image imagePullPolicy imagePullSecrets imageTag labels logConfig metrics"
        " nodeSelector podMetadata properties resources tolerations"
    ),
    jindoVersion=_IMAGE,
    master=_JINDO_PART,
    worker=_JINDO_PART,
    runAs=_USER,
    tieredstore=_TIERS,
)
_JUICEFS_PART = _names(_COMPONENT + " enabled networkMode options")
_JUICEFS = _names(
    "configs disablePrometheus podMetadata replicas volumeClaimTemplates volumes",
    fuse=_names(
        "cleanPolicy env image imagePullPolicy imageTag networkMode nodeSelector options podMetadata resources"
        " volumeMounts"
    ),
    initUsers=_names("env image imagePullPolicy imageTag resources"),
    jobWorker=_JUICEFS_PART,
    juicefsVersion=_IMAGE,
    management=_MANAGEMENT,
    master=_JUICEFS_PART,
    worker=_JUICEFS_PART,
    runAs=_USER,
    tieredstore=_TIERS,
)
_THIN = _names(
    "disablePrometheus imagePullSecrets profileName replicas volumes",
    fuse=_names(
        "args cleanPolicy command env image imagePullPolicy imagePullSecrets imageTag lifecycle livenessProbe"
        " networkMode nodeSelector options podMetadata ports readinessProbe resources volumeMounts"
    ),
    management=_MANAGEMENT,
    worker=_names(
        "enabled env image imagePullPolicy imagePullSecrets imageTag livenessProbe networkMode nodeSelector ports"
        " readinessProbe replicas resources volumeMounts"
    ),
    runAs=_USER,
    tieredstore=_TIERS,
)

RUNTIMES: Mapping[str, Fields] = {
    "AlluxioRuntime": {**_ALLUXIO, "alluxioVersion": _IMAGE},
    "JindoRuntime": _JINDO,
    "JuiceFSRuntime": _JUICEFS,
    "ThinRuntime": _THIN,
}
"""`spec` of each runtime whose fields are known."""

OTHER_RUNTIMES = ("CacheFSRuntime", "EACRuntime", "EFCRuntime", "GooseFSRuntime", "VineyardRuntime")
"""Runtimes of Fluid's whose definitions were not at hand: their fields are not all checked."""

ANY_RUNTIME: Fields = {
    **_names(
        "apiGateway cleanCachePolicy data disablePrometheus fuse goosefsVersion hadoopConfig imagePullSecrets initFuse"
        " initUsers jobMaster jobWorker jvmOptions management master metadataList osAdvise podMetadata properties"
        " replicas runAs volumes worker"
    ),
    "tieredstore": _TIERS,
}
"""What a runtime of any kind may have. For one that is not in `RUNTIMES`, only near misses of these are errors."""

NO_COUNTERPART: Mapping[str, str] = {
    "CacheRuntime": "Fluid's CacheRuntime describes containers; write a CacheRuntime of raycache.io/v1",
    "CacheRuntimeClass": "remove it; raycache has one engine",
    "DataBackup": "remove it; there is no metadata to back up",
    "DataMigrate": "remove it; raycache does not write to object stores",
    "DataProcess": "remove it; run a Ray job instead",
    "ThinRuntimeProfile": "remove it; raycache has one engine",
}
"""Fluid's kinds that cannot be mapped, and what to do about each."""
