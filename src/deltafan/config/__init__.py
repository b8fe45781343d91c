"""Where settings come from, besides the environment: a `.env` file, the user's `config.toml`, and `configure`."""
