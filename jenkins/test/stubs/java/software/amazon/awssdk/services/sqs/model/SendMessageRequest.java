package software.amazon.awssdk.services.sqs.model;

public final class SendMessageRequest {
    private final String queueUrl;
    private final String messageBody;

    private SendMessageRequest(String queueUrl, String messageBody) {
        this.queueUrl = queueUrl;
        this.messageBody = messageBody;
    }

    public static Builder builder() {
        return new BuilderImpl();
    }

    public String queueUrl() {
        return queueUrl;
    }

    public String messageBody() {
        return messageBody;
    }

    public interface Builder {
        Builder queueUrl(String queueUrl);

        Builder messageBody(String messageBody);

        SendMessageRequest build();
    }

    static final class BuilderImpl implements Builder {
        private String queueUrl;
        private String messageBody;

        @Override
        public Builder queueUrl(String queueUrl) {
            this.queueUrl = queueUrl;
            return this;
        }

        @Override
        public Builder messageBody(String messageBody) {
            this.messageBody = messageBody;
            return this;
        }

        @Override
        public SendMessageRequest build() {
            return new SendMessageRequest(queueUrl, messageBody);
        }
    }
}
