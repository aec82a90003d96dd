package software.amazon.awssdk.services.sns;

import java.util.function.Consumer;
import test.Sent;
import software.amazon.awssdk.core.client.config.ClientOverrideConfiguration;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.sns.model.PublishRequest;

/** As in the SDK: an interface with static methods, whose implementation is not public. */
public interface SnsClient extends AutoCloseable {
    static SnsClientBuilder builder() {
        return new DefaultSnsClientBuilder();
    }

    Object publish(PublishRequest request);

    Object publish(Consumer<PublishRequest.Builder> request);

    @Override
    void close();
}

interface SnsClientBuilder {
    SnsClientBuilder region(Region region);

    SnsClientBuilder overrideConfiguration(ClientOverrideConfiguration configuration);

    SnsClientBuilder overrideConfiguration(Consumer<ClientOverrideConfiguration.Builder> configuration);

    SnsClient build();
}

final class DefaultSnsClientBuilder implements SnsClientBuilder {
    private Region region;

    @Override
    public SnsClientBuilder region(Region region) {
        this.region = region;
        return this;
    }

    @Override
    public SnsClientBuilder overrideConfiguration(ClientOverrideConfiguration configuration) {
        return this;
    }

    @Override
    public SnsClientBuilder overrideConfiguration(Consumer<ClientOverrideConfiguration.Builder> configuration) {
        return this;
    }

    @Override
    public SnsClient build() {
        return new DefaultSnsClient(region);
    }
}

final class DefaultSnsClient implements SnsClient {
    private final Region region;

    DefaultSnsClient(Region region) {
        this.region = region;
    }

    @Override
    public Object publish(PublishRequest request) {
        Sent.add("sns v2", region == null ? null : region.id(), request.topicArn(), request.message());
        return null;
    }

    @Override
    public Object publish(Consumer<PublishRequest.Builder> request) {
        throw new UnsupportedOperationException();
    }

    @Override
    public void close() {
    }
}
