"""Stand-ins for hosted services, for development, demos and tests: embedded Valkey and a scripted provider."""
