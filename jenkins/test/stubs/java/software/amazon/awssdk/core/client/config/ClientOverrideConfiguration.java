package software.amazon.awssdk.core.client.config;

import java.time.Duration;

public final class ClientOverrideConfiguration {
    final Duration apiCallTimeout;

    ClientOverrideConfiguration(Duration apiCallTimeout) {
        this.apiCallTimeout = apiCallTimeout;
    }

    public static Builder builder() {
        return new DefaultBuilder();
    }

    public interface Builder {
        Builder apiCallTimeout(Duration apiCallTimeout);

        ClientOverrideConfiguration build();
    }
}

final class DefaultBuilder implements ClientOverrideConfiguration.Builder {
    private Duration apiCallTimeout;

    @Override
    public ClientOverrideConfiguration.Builder apiCallTimeout(Duration apiCallTimeout) {
        this.apiCallTimeout = apiCallTimeout;
        return this;
    }

    @Override
    public ClientOverrideConfiguration build() {
        return new ClientOverrideConfiguration(apiCallTimeout);
    }
}
