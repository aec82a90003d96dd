package software.amazon.awssdk.services.sns.model;

public final class PublishRequest {
    private final String topicArn;
    private final String message;

    private PublishRequest(String topicArn, String message) {
        this.topicArn = topicArn;
        this.message = message;
    }

    public static Builder builder() {
        return new BuilderImpl();
    }

    public String topicArn() {
        return topicArn;
    }

    public String message() {
        return message;
    }

    public interface Builder {
        Builder topicArn(String topicArn);

        Builder message(String message);

        PublishRequest build();
    }

    static final class BuilderImpl implements Builder {
        private String topicArn;
        private String message;

        @Override
        public Builder topicArn(String topicArn) {
            this.topicArn = topicArn;
            return this;
        }

        @Override
        public Builder message(String message) {
            this.message = message;
            return this;
        }

        @Override
        public PublishRequest build() {
            return new PublishRequest(topicArn, message);
        }
    }
}
