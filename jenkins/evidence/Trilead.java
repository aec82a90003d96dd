import com.trilead.ssh2.ChannelCondition;
import com.trilead.ssh2.Connection;
import com.trilead.ssh2.Session;
import java.io.File;
import java.io.IOException;

/**
 * Runs a command over SSH with Jenkins' own SSH library, in the steps of the SSH launcher
 * (hudson.plugins.sshslaves.SSHLauncher: connect, public key, a session that executes a command). Exits as the command
 * does, or with 255 when it comes to none, as OpenSSH's client.
 */
public final class Trilead {
    private static final int TIMEOUT_MS = 10_000;

    public static void main(String[] args) throws Exception {
        if (args.length != 5) {
            System.err.println("usage: trilead HOST PORT USER KEYFILE COMMAND");
            System.exit(255);
        }
        int status = 255;
        try {
            status = run(args[0], Integer.parseInt(args[1]), args[2], new File(args[3]), args[4]);
        } catch (IOException e) {
            // The reason is in the innermost cause ("Cannot negotiate, proposals do not match.").
            Throwable cause = e;
            while (cause.getCause() != null) {
                cause = cause.getCause();
            }
            System.err.println("trilead: " + cause.getMessage());
        }
        System.exit(status);
    }

    private static int run(String host, int port, String user, File key, String command)
            throws IOException, InterruptedException {
        Connection connection = new Connection(host, port);
        try {
            // No verifier: as with hostKeyVerification: none.
            connection.connect(null, TIMEOUT_MS, TIMEOUT_MS);
            if (!connection.authenticateWithPublicKey(user, key, null)) {
                throw new IOException("the key of " + user + " is not accepted");
            }
            Session session = connection.openSession();
            session.execCommand(command);
            session.getStdin().close();
            // stderr is small here; Jenkins reads both in threads of its own.
            session.getStdout().transferTo(System.out);
            session.getStderr().transferTo(System.err);
            session.waitForCondition(ChannelCondition.EXIT_STATUS, TIMEOUT_MS);
            Integer status = session.getExitStatus();
            return status == null ? 255 : status;
        } finally {
            connection.close();
        }
    }
}
