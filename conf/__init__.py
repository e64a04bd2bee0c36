"""The config groups: YAML holds choices; `launcher.config` holds names, defaults and limits."""
