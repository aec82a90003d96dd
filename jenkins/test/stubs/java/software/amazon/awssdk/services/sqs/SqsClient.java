package software.amazon.awssdk.services.sqs;

import java.util.function.Consumer;
import test.Sent;
import software.amazon.awssdk.core.client.config.ClientOverrideConfiguration;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.sqs.model.SendMessageRequest;

/** As in the SDK: an interface with static methods, whose implementation is not public. */
public interface SqsClient extends AutoCloseable {
    static SqsClientBuilder builder() {
        return new DefaultSqsClientBuilder();
    }

    Object sendMessage(SendMessageRequest request);

    Object sendMessage(Consumer<SendMessageRequest.Builder> request);

    @Override
    void close();
}

interface SqsClientBuilder {
    SqsClientBuilder region(Region region);

    SqsClientBuilder overrideConfiguration(ClientOverrideConfiguration configuration);

    SqsClientBuilder overrideConfiguration(Consumer<ClientOverrideConfiguration.Builder> configuration);

    SqsClient build();
}

final class DefaultSqsClientBuilder implements SqsClientBuilder {
    private Region region;

    @Override
    public SqsClientBuilder region(Region region) {
        this.region = region;
        return this;
    }

    @Override
    public SqsClientBuilder overrideConfiguration(ClientOverrideConfiguration configuration) {
        return this;
    }

    @Override
    public SqsClientBuilder overrideConfiguration(Consumer<ClientOverrideConfiguration.Builder> configuration) {
        return this;
    }

    @Override
    public SqsClient build() {
        return new DefaultSqsClient(region);
    }
}

final class DefaultSqsClient implements SqsClient {
    private final Region region;

    DefaultSqsClient(Region region) {
        this.region = region;
    }

    @Override
    public Object sendMessage(SendMessageRequest request) {
        Sent.add("sqs v2", region == null ? null : region.id(), request.queueUrl(), request.messageBody());
        return null;
    }

    @Override
    public Object sendMessage(Consumer<SendMessageRequest.Builder> request) {
        throw new UnsupportedOperationException();
    }

    @Override
    public void close() {
    }
}
