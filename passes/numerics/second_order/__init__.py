"""Second-order compression: a layer's error is measured in what it answers, by the second moments of its inputs."""
