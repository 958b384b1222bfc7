"""Where the public names are, for the reference and for the tests of docstrings."""

SHORT = {
    f"steerfn.{name.rpartition('.')[2]}": f"steerfn.{name}"
    for name in ("operators.scopes", "operators.schedules", "discover.workers", "evaluate.protocols", "values.files")
}
"""Namespaces by the path that users type, which is not where their module stands."""
NAMESPACES = [
    "steerfn", "steerfn.scopes", "steerfn.schedules", "steerfn.discover", "steerfn.workers", "steerfn.datasets",
    "steerfn.metrics", "steerfn.evaluate", "steerfn.protocols", "steerfn.plot", "steerfn.zoo",
]  # fmt: skip
"""Modules whose `dir` is what they offer."""
OTHERS = {
    "steerfn.operators": "Tokens",
    "steerfn.values": "Metadata ModelIdentity Sites check_match fingerprint",
    "steerfn.files": "describe from_pt push_to_hub",
    "steerfn.metrics": "Metrics",
    "steerfn.model": "Layout",
    "steerfn.verbs": "Steering Functional",
    "steerfn.run": "Generations Scores Sensitivity Chat Position token_read",
    "steerfn.reporting": "Report",
    "steerfn.engines": "bake to_lm_eval",
    "steerfn.engines.vllm": "register",
    "steerfn.serving": "app Limits Keys SteeringRequest",
    "steerfn.board": "Dashboard app State Source to_python to_command",
    "steerfn.integrations.langchain": "SteeredChatModel conversation",
    "steerfn.integrations.llamaindex": "SteeredLLM conversation",
}
"""Of modules that hold more than they offer, what they offer."""
