// The peer in Go: gin, pgx (a pool of 10, which prepares and keeps statements by itself), gorilla/websocket.
// It has no Socket.IO. Environment: PORT, JWT_SECRET, and libpq's PG* variables.
package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/golang-jwt/jwt"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

var (
	next = map[string]string{
		"Pending": "Processing", "Processing": "Shipped", "Shipped": "Completed",
	}
	secret  = []byte(os.Getenv("JWT_SECRET"))
	pool    *pgxpool.Pool
	watched = newHub()
)

const (
	orderColumns = `o.id, o.description, o.status, o.version, o.customer_id, u.name,
		o.created_at, o.updated_at FROM orders o JOIN users u ON u.id = o.customer_id`
	readSQL = `SELECT ` + orderColumns + ` WHERE o.id = $1 AND ($2 OR o.customer_id = $3)`
	lockSQL = `SELECT ` + orderColumns + ` WHERE o.id = $1 FOR NO KEY UPDATE OF o`
	moveSQL = `UPDATE orders SET status = $2, version = version + 1, updated_at = now()
		WHERE id = $1 RETURNING version, updated_at`
	appendSQL = `INSERT INTO order_events (order_id, version, type, status, previous_status,
			actor_id, actor_name, actor_role, note, updated_at)
		VALUES ($1, $2, 'status_changed', $3, $4, $5, $6, $7, $8, $9)`
	createSQL = `WITH o AS (
			INSERT INTO orders (customer_id, description) VALUES ($1, $2) RETURNING *),
		e AS (
			INSERT INTO order_events (order_id, version, type, status,
				actor_id, actor_name, actor_role, updated_at)
			SELECT id, version, 'created', status, $1, $3, $4, updated_at FROM o)
		SELECT id, description, status, version, customer_id, $3::text, created_at, updated_at FROM o`
)

type claims struct {
	Name string `json:"name"`
	Role string `json:"role"`
	jwt.RegisteredClaims
}

type person struct {
	ID   int64  `json:"id,string"`
	Name string `json:"name"`
}

type actor struct {
	person
	Role string `json:"role"`
}

func (a *actor) isStaff() bool { return a.Role == "driver" || a.Role == "admin" }

type order struct {
	ID           int64     `json:"id,string"`
	Description  string    `json:"description"`
	Status       string    `json:"status"`
	Version      int       `json:"version"`
	Customer     person    `json:"customer"`
	Driver       *person   `json:"driver"`
	CreatedAt    time.Time `json:"created_at"`
	UpdatedAt    time.Time `json:"updated_at"`
	NextStatuses []string  `json:"next_statuses"`
}

type event struct {
	OrderID        int64     `json:"order_id,string"`
	Version        int       `json:"version"`
	Type           string    `json:"type"`
	Status         string    `json:"status"`
	PreviousStatus *string   `json:"previous_status"`
	Actor          actor     `json:"actor"`
	Note           *string   `json:"note"`
	UpdatedAt      time.Time `json:"updated_at"`
}

func scanOrder(row pgx.Row) (*order, error) {
	o := &order{NextStatuses: []string{}}
	err := row.Scan(&o.ID, &o.Description, &o.Status, &o.Version, &o.Customer.ID, &o.Customer.Name,
		&o.CreatedAt, &o.UpdatedAt)
	return o, err
}

func present(c *gin.Context, status int, a *actor, o *order) {
	if to, ok := next[o.Status]; ok && a.isStaff() {
		o.NextStatuses = []string{to}
	}
	c.JSON(status, o)
}

func fail(c *gin.Context, err error) {
	if errors.Is(err, pgx.ErrNoRows) {
		c.AbortWithStatusJSON(http.StatusNotFound, gin.H{"status": 404, "code": "not_found"})
		return
	}
	log.Print(err)
	c.AbortWithStatusJSON(http.StatusInternalServerError, gin.H{"status": 500, "code": "internal"})
}

func refuse(c *gin.Context, status int, code string) {
	c.AbortWithStatusJSON(status, gin.H{"status": status, "code": code})
}

var parser = jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}))

// The token alone is trusted for who it is and what they may do.
func authenticate(c *gin.Context) {
	var found claims
	token := strings.TrimPrefix(c.GetHeader("Authorization"), "Bearer ")
	_, err := parser.ParseWithClaims(token, &found, func(*jwt.Token) (interface{}, error) {
		return secret, nil
	})
	id, notNumber := strconv.ParseInt(found.Subject, 10, 64)
	if err != nil || notNumber != nil {
		refuse(c, http.StatusUnauthorized, "invalid_token")
		return
	}
	c.Set("actor", &actor{person{id, found.Name}, found.Role})
}

func caller(c *gin.Context) *actor { return c.MustGet("actor").(*actor) }

func orderID(c *gin.Context) (int64, bool) {
	id, err := strconv.ParseInt(c.Param("id"), 10, 64)
	if err != nil {
		refuse(c, http.StatusNotFound, "not_found")
	}
	return id, err == nil
}

func readOrder(c *gin.Context) {
	a := caller(c)
	id, ok := orderID(c)
	if !ok {
		return
	}
	o, err := scanOrder(pool.QueryRow(c.Request.Context(), readSQL, id, a.isStaff(), a.ID))
	if err != nil {
		fail(c, err)
		return
	}
	present(c, http.StatusOK, a, o)
}

func createOrder(c *gin.Context) {
	a := caller(c)
	var body struct {
		Description string `json:"description" binding:"required"`
	}
	if err := c.ShouldBindJSON(&body); err != nil {
		refuse(c, http.StatusUnprocessableEntity, "validation_failed")
		return
	}
	o, err := scanOrder(
		pool.QueryRow(c.Request.Context(), createSQL, a.ID, body.Description, a.Name, a.Role))
	if err != nil {
		fail(c, err)
		return
	}
	present(c, http.StatusCreated, a, o)
}

var errTransition = errors.New("invalid_transition")

func changeStatus(c *gin.Context) {
	a := caller(c)
	var body struct {
		Status string  `json:"status" binding:"required"`
		Note   *string `json:"note"`
	}
	id, ok := orderID(c)
	if !ok {
		return
	}
	if err := c.ShouldBindJSON(&body); err != nil {
		refuse(c, http.StatusUnprocessableEntity, "validation_failed")
		return
	}
	if !a.isStaff() {
		refuse(c, http.StatusForbidden, "forbidden")
		return
	}
	o, happened, err := move(c.Request.Context(), a, id, body.Status, body.Note)
	if errors.Is(err, errTransition) {
		refuse(c, http.StatusConflict, "invalid_transition")
		return
	}
	if err != nil {
		fail(c, err)
		return
	}
	watched.tell(happened)
	present(c, http.StatusOK, a, o)
}

// Five statements: BEGIN, lock, update, insert, COMMIT.
func move(ctx context.Context, a *actor, id int64, status string, note *string) (*order, *event, error) {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer tx.Rollback(ctx) // nothing after a commit
	o, err := scanOrder(tx.QueryRow(ctx, lockSQL, id))
	if err != nil {
		return nil, nil, err
	}
	previous := o.Status
	if next[previous] != status {
		return nil, nil, errTransition
	}
	if err := tx.QueryRow(ctx, moveSQL, id, status).Scan(&o.Version, &o.UpdatedAt); err != nil {
		return nil, nil, err
	}
	o.Status = status
	_, err = tx.Exec(ctx, appendSQL, id, o.Version, status, previous, a.ID, a.Name, a.Role, note, o.UpdatedAt)
	if err != nil {
		return nil, nil, err
	}
	happened := &event{id, o.Version, "status_changed", status, &previous, *a, note, o.UpdatedAt}
	return o, happened, tx.Commit(ctx)
}

func main() {
	config, err := pgxpool.ParseConfig("")
	if err != nil {
		log.Fatal(err)
	}
	config.MaxConns, config.MinConns = 10, 10
	if pool, err = pgxpool.ConnectConfig(context.Background(), config); err != nil {
		log.Fatal(err)
	}
	gin.SetMode(gin.ReleaseMode)
	app := gin.New()
	app.Use(gin.Recovery(), authenticate)
	app.GET("/api/orders/:id", readOrder)
	app.POST("/api/orders", createOrder)
	app.PUT("/api/orders/:id/status", changeStatus)
	app.GET("/ws/orders/:id", watch)
	log.Fatal(app.Run("127.0.0.1:" + os.Getenv("PORT")))
}
