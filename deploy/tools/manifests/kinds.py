"""What of the Prometheus operator's and Kueue's objects this repository uses, as schemas: their definitions are not
at hand everywhere, and a typo is to be found anyway. A field that is not used here yet is to be added here first."""

from __future__ import annotations

from rollcall.deploy.tools.manifests.schema import Kinds, Schema

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
DURATION: Schema = {"type": "string", "pattern": r"^(\d+(ms|[smhdwy]))+$"}
QUANTITY: Schema = {"x-kubernetes-int-or-string": True, "pattern": r"^[0-9.]+([numkMGTPE]|[KMGTPE]i)?$"}


def _of(**fields: Schema) -> Schema:
    """An object that may have these fields; those with a name that ends in _ must be there."""
    named = {name.rstrip("_"): schema for name, schema in fields.items()}
    return {"type": "object", "properties": named, "required": [name[:-1] for name in fields if name.endswith("_")]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_EXPRESSION = _of(
    key_=STRING,
    operator_={"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
    values=_list(STRING),
)
SELECTOR = _of(matchLabels=STRINGS, matchExpressions=_list(_EXPRESSION))
_RELABELING = _of(
    action={"type": "string", "enum": ["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep", "hashmod"]},
    sourceLabels=_list(STRING),
    targetLabel=STRING,
    regex=STRING,
    replacement=STRING,
    separator=STRING,
)
_ENDPOINT = _of(
    port_=STRING,
    path=STRING,
    interval=DURATION,
    scrapeTimeout=DURATION,
    honorLabels={"type": "boolean"},
    relabelings=_list(_RELABELING),
    metricRelabelings=_list(_RELABELING),
)
_RULE = _of(
    alert=STRING,
    record=STRING,
    expr_={"x-kubernetes-int-or-string": True},
    keep_firing_for=DURATION,
    labels=STRINGS,
    annotations=STRINGS,
    **{"for": DURATION},
)
_QUOTA = _of(name_=STRING, nominalQuota_=QUANTITY, borrowingLimit=QUANTITY, lendingLimit=QUANTITY)
_FLAVOR = _of(name_=STRING, resources_=_list(_QUOTA))


def _kind(spec: Schema | None) -> Schema:
    metadata: Schema = {"type": "object"}
    return _of(apiVersion_=STRING, kind_=STRING, metadata_=metadata, **({} if spec is None else {"spec_": spec}))


KINDS: Kinds = {
    ("monitoring.coreos.com/v1", "PodMonitor"): _kind(
        _of(
            selector_=SELECTOR,
            podMetricsEndpoints_=_list(_ENDPOINT),
            podTargetLabels=_list(STRING),
            jobLabel=STRING,
            sampleLimit=INTEGER,
        )
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _kind(
        _of(selector_=SELECTOR, endpoints_=_list(_ENDPOINT), targetLabels=_list(STRING), jobLabel=STRING)
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _kind(
        _of(groups_=_list(_of(name_=STRING, interval=DURATION, rules_=_list(_RULE))))
    ),
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): _of(
        apiVersion_=STRING,
        kind_=STRING,
        metadata_={"type": "object"},
        spec=_of(
            nodeLabels=STRINGS, tolerations=_list({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
        ),
    ),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): _kind(
        _of(
            namespaceSelector=SELECTOR,
            queueingStrategy={"type": "string", "enum": ["StrictFIFO", "BestEffortFIFO"]},
            resourceGroups=_list(_of(coveredResources_=_list(STRING), flavors_=_list(_FLAVOR))),
        )
    ),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): _kind(_of(clusterQueue_=STRING)),
}
