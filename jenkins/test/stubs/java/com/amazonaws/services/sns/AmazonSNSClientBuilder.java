package com.amazonaws.services.sns;

import com.amazonaws.ClientConfiguration;

import test.Sent;

public final class AmazonSNSClientBuilder {
    private String region;
    private ClientConfiguration configuration = new ClientConfiguration();

    private AmazonSNSClientBuilder() {
    }

    public static AmazonSNSClientBuilder standard() {
        return new AmazonSNSClientBuilder();
    }

    public AmazonSNSClientBuilder withRegion(String region) {
        this.region = region;
        return this;
    }

    public AmazonSNSClientBuilder withClientConfiguration(ClientConfiguration configuration) {
        this.configuration = configuration;
        return this;
    }

    public AmazonSNS build() {
        if (configuration.getClientExecutionTimeout() == 0) {
            throw new IllegalStateException("a call could last for ever");
        }
        return new AmazonSNS() {
            @Override
            public Object publish(String target, String message) {
                Sent.add("sns v1", region, target, message);
                return null;
            }

            @Override
            public void shutdown() {
            }
        };
    }
}
