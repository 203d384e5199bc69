"""How a batch is changed once it is on the device: policies and draws on the host, arithmetic on the device."""
