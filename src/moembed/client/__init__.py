"""A served model, asked over HTTP: `moembed.client.model.Client`, which is `moembed.Client`."""
